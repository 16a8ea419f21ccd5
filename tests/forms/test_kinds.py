"""A kind of model of one's own is one class: every room then takes it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, forms, models, surgery
from koopjax._core import Outline
from tests.nets import normal

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model of another library: what it computes, beside which its arrays are kept by name."""

    weights: tuple[tuple[str, jax.Array], ...] = dataclasses.field(compare=False)
    power: int = 1


class RecipeKind(forms.Definition):
    """`Recipe`: its weights are parameters under their names."""

    @classmethod
    def takes(cls, model):
        return isinstance(model, Recipe)

    @classmethod
    def parts(cls, model):
        return dataclasses.replace(model, weights=()), dict(model.weights)

    @classmethod
    def join(cls, code, tree, bound):
        return dataclasses.replace(code, weights=tuple(tree.items()))

    @classmethod
    def outlined(cls, code, tree):
        rows = [(name, tree[name], nnx.Param) for name in sorted(tree)]
        return Outline(jax.tree.structure(tree), (None,) * len(rows)), rows

    def call(self, model, tree):
        return forms.Call(compute, lambda x, **_: (compute(tree, self.code.value.power, x), []),
                          (tree, self.code.value.power))  # fmt: skip

    def train(self, params, rest, x, key):
        return compute(params, self.code.value.power, x), rest


def compute(tree, power, x):
    return jnp.tanh(x @ tree["first"]) ** power @ tree["last"]


@pytest.fixture
def recipe():
    forms.KINDS.insert(0, RecipeKind)
    weights = {"first": normal(4, 5), "last": normal(5, 3, seed=1)}
    yield Recipe(tuple((name, jax.device_put(w)) for name, w in weights.items()), 2)
    forms.KINDS.remove(RecipeKind)


def test_every_room_takes_a_kind_of_ones_own(recipe, tmp_path):
    want = jax.jit(lambda tree: compute(tree, 2, X))(dict(recipe.weights))
    np.testing.assert_allclose(models.predict(recipe, X), want, rtol=1e-6)
    head, span, tail = surgery.split(recipe, X, ("first", "last"))
    np.testing.assert_allclose(tail(span(head(X))), want, rtol=1e-6)
    assert list(span.parameters) == ["last"]
    export.save(recipe, tmp_path / "recipe.koopjax")
    zeros = dataclasses.replace(
        recipe, weights=tuple((n, np.zeros_like(w)) for n, w in recipe.weights)
    )
    again = export.load(tmp_path / "recipe.koopjax", zeros)
    for one, other in zip(again.weights, recipe.weights, strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
    made = models.train(recipe, X, np.zeros((20, 3)), key=jax.random.key(1), epochs=1, batch_size=6,
                        loss=models.squared_error)  # fmt: skip
    assert isinstance(made.model, Recipe)
    assert made.model.power == 2
    small = compress.METHODS["magnitude"](recipe, X, "2x", key=jax.random.key(2))
    assert isinstance(small.model, Recipe)


def test_forms_are_equal_for_models_that_differ_in_numbers(recipe):
    twice = dataclasses.replace(recipe, weights=tuple((n, 2 * w) for n, w in recipe.weights))
    one, two = (forms.define(model)[0] for model in (recipe, twice))
    assert one == two
    assert hash(one) == hash(two)
    assert one != forms.define(dataclasses.replace(recipe, power=3))[0]
    form, params, rest = forms.form_of(recipe)
    assert form.merge(params, rest).weights[0][1] is recipe.weights[0][1]
