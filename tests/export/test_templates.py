"""Models that the library does not know: the file holds their arrays, a template their code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from koopjax import export, models, nn, observables

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 4))


class Own(nnx.Module):
    def __init__(self, width, rngs, extra=False):
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.then = nnx.Linear(width, 2, rngs=rngs)
        if extra:
            self.zlast = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return self.then(self.drop(jax.nn.relu(self.first(x))))


@pytest.fixture
def stored(tmp_path):
    model = Own(6, nnx.Rngs(0))
    model.eval()
    path = tmp_path / "own.kjx"
    assert export.save(model, path) == path.stat().st_size == export.stored_bytes(model)
    return model, path


def test_a_module_of_ones_own(stored):
    model, path = stored
    template = Own(6, nnx.Rngs(7))
    template.eval()
    back = export.load(path, model=template)
    np.testing.assert_array_equal(back(X), model(X))
    numbers = sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert path.stat().st_size - 4 * numbers < 100


def test_without_a_template_one_line_says_so(stored):
    _, path = stored
    with pytest.raises(
        export.FileError, match=r"holds the arrays of Own, got none; try load\("
    ) as e:
        export.load(path)
    assert "\n" not in str(e.value)


def test_another_model_is_told_by_the_first_path_that_differs(stored):
    _, path = stored
    with pytest.raises(export.FileError, match=r"first/bias of shape \(7,\), \(6,\) in the file"):
        export.load(path, model=Own(7, nnx.Rngs(0)))
    with pytest.raises(export.FileError, match=r"zlast is too many"):
        export.load(path, model=Own(6, nnx.Rngs(0), extra=True))
    other = {"a": jnp.ones(6), "first": jnp.ones((4, 6))}
    with pytest.raises(export.FileError, match="got one with no a at its place"):
        export.load(path, model=other)
    named = path.with_name("mlp.kjx")
    export.save(models.MLP((4, 5, 3), rngs=nnx.Rngs(0)), named)
    with pytest.raises(export.FileError, match=r"layers/0/bias of shape \(6,\), \(5,\) in the"):
        export.load(named, model=models.MLP((4, 6, 3), rngs=nnx.Rngs(0)))
    with pytest.raises(export.FileError, match="got one with no layers/0/bias"):
        export.load(named, model=Own(6, nnx.Rngs(0)))


def test_a_linen_pair(tmp_path):
    module = linen.Dense(3)
    variables = module.init(KEY, X)
    path = tmp_path / "linen.kjx"
    export.save((module, variables), path)
    template = module.init(jax.random.key(5), X)
    back_module, back = export.load(path, model=(module, template))
    assert back_module is module
    np.testing.assert_array_equal(module.apply(back, X), module.apply(variables, X))


def test_a_linen_koopman_block(tmp_path):
    block = nn.KoopmanBlock(observables.Monomials(1), nn.Dense.create(KEY, 5, 2), trainable=False)
    pair = nn.linen.from_nnx(block)
    export.save(pair, tmp_path / "b.kjx")
    module, variables = export.load(tmp_path / "b.kjx", model=pair)
    np.testing.assert_array_equal(module.apply(variables, X), block(X))


def test_functions_and_plain_trees(tmp_path):
    params = {"w": jnp.ones((4, 2), jnp.bfloat16), "n": [jnp.arange(3), 2.5, np.arange(2.0)]}
    path = tmp_path / "tree.kjx"
    export.save(params, path)
    back = export.load(path, model=jax.tree.map(lambda a: 0 * a, params))
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert type(a) is type(b)
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))

    def function(p, x):
        return x @ p["w"]

    export.save((function, params), path)
    code, back = export.load(path, model=(function, params))
    assert code is function
    np.testing.assert_array_equal(back["w"], params["w"])


def test_dictionaries_from_code_need_a_template(tmp_path):
    psi = observables.Custom(jnp.sin, 4)
    block = nn.KoopmanBlock(psi, nn.Dense.create(KEY, 4, 2))
    export.save(block, tmp_path / "c.kjx")
    with pytest.raises(export.FileError, match=r"try load\(path, model="):
        export.load(tmp_path / "c.kjx")
    again = nn.KoopmanBlock(psi, nn.Dense.create(jax.random.key(8), 4, 2))
    np.testing.assert_array_equal(export.load(tmp_path / "c.kjx", model=again)(X), block(X))


def test_what_is_no_array_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected numbers at name, got str"):
        export.save({"name": "text"}, tmp_path / "a.kjx")
    with pytest.raises(ValueError, match="a random key"):
        export.save({"key": KEY}, tmp_path / "a.kjx")
    with pytest.raises(ValueError, match=r"export\.save outside jit"):
        jax.jit(lambda a: export.stored_bytes({"a": a}))(jnp.ones(2))
    assert not list(tmp_path.iterdir())
