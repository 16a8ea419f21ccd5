"""Models that the library does not know: the file holds their arrays, a template their code."""

import functools

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


class Held(nnx.Module):
    """Leaves that are no Variable's array: in plain containers, and a tree in a Variable."""

    def __init__(self, seed, cell):
        rngs = nnx.Rngs(seed)
        self.means = nnx.data({"of": jnp.arange(4.0) + seed, "scale": np.full(4, 2.0 + seed)})
        self.pair = nnx.BatchStat({"low": jnp.zeros(4) - seed, "high": jnp.ones(4) + seed})
        self.cells = cell(rngs)
        self.out = nnx.WeightNorm(nnx.Linear(3, 2, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        pair = self.pair.get_value()
        x = jnp.clip(x - self.means["of"], pair["low"], pair["high"]) * self.means["scale"]
        return self.out(self.cells(x[:, None])[:, 0])


def gru(rngs):
    return nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs), rngs=rngs)


def test_a_module_with_more_than_variables_of_arrays(tmp_path):
    model = Held(3, gru)
    export.save(model, tmp_path / "held.kjx")
    back = export.load(tmp_path / "held.kjx", model=Held(8, gru))
    np.testing.assert_array_equal(back.means["of"], np.arange(4.0) + 3)
    assert type(back.means["scale"]) is np.ndarray
    np.testing.assert_array_equal(back.pair.get_value()["high"], np.full(4, 4.0))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_array_equal(back(X), model(X))


def test_functions_among_the_leaves_are_code(tmp_path):
    net = lambda p, x: p["act"](x @ p["w"]) * p["n"]
    params = {"act": jnp.tanh, "w": jnp.ones((4, 2)), "n": 3, "kind": "small"}
    export.save((net, params), tmp_path / "f.kjx")
    other = {"act": jnp.tanh, "w": jnp.zeros((4, 2)), "n": 1, "kind": "small"}
    _, back = export.load(tmp_path / "f.kjx", model=(net, other))
    assert back["act"] is jnp.tanh
    assert (back["n"], back["kind"]) == (3, "small")
    np.testing.assert_array_equal(back["w"], params["w"])
    with pytest.raises(
        ValueError, match="expected a model whose parameters can be seen, got a function"
    ):
        export.save(net, tmp_path / "bare.kjx")


def test_a_bound_mode_is_bound_again(tmp_path):
    class Scaled(nnx.Module):
        def __init__(self, seed):
            self.linear = nnx.Linear(4, 2, rngs=nnx.Rngs(seed))

        def __call__(self, x, factor):
            return self.linear(x) * factor

    model = functools.partial(Scaled(0), factor=2.0)
    export.save(model, tmp_path / "bound.kjx")
    back = export.load(tmp_path / "bound.kjx", model=functools.partial(Scaled(1), factor=2.0))
    np.testing.assert_array_equal(back(X), model(X))


class Tied(nnx.Module):
    def __init__(self, seed, tie):
        self.a = nnx.Linear(8, 8, rngs=nnx.Rngs(seed))
        self.b = nnx.Linear(8, 8, rngs=nnx.Rngs(seed + 1))
        if tie == "array":
            self.b.kernel = nnx.Param(self.a.kernel.get_value())
        elif tie == "variable":
            self.b.kernel = self.a.kernel


@pytest.mark.parametrize("tie", ["array", "variable", "tree"])
def test_what_two_names_share_is_stored_once_and_shared_again(tie, tmp_path):
    w = jax.random.normal(KEY, (8, 8))
    apart = export.stored_bytes({"a": w, "b": w + 1} if tie == "tree" else Tied(0, None))
    model = {"a": w, "b": w} if tie == "tree" else Tied(0, tie)
    stored = export.save(model, tmp_path / "tied.kjx")
    assert stored <= apart - 4 * 64
    template = {"a": w * 0, "b": w * 0} if tie == "tree" else Tied(5, tie)
    back = export.load(tmp_path / "tied.kjx", model=template)
    assert export.stored_bytes(back) == stored
    if tie == "tree":
        assert back["a"] is back["b"]
        np.testing.assert_array_equal(back["b"], w)
    else:
        assert back.a.kernel.get_value() is back.b.kernel.get_value()
        np.testing.assert_array_equal(back.b.kernel, model.a.kernel)
    if tie != "variable":
        forms = [array.form for array in export.describe(tmp_path / "tied.kjx").arrays]
        assert forms.count("same") == 1


def test_named_models_share_again_too(tmp_path):
    model = models.MLP((8, 8, 8, 8), rngs=nnx.Rngs(0))
    whole = export.stored_bytes(model)
    model.layers[1].kernel.set_value(model.layers[0].kernel.get_value())
    assert export.save(model, tmp_path / "m.kjx") < whole - 4 * 60
    back = export.load(tmp_path / "m.kjx")
    x = jax.random.normal(KEY, (3, 8))
    np.testing.assert_array_equal(back(x), model(x))
    assert back.layers[0].kernel.get_value() is back.layers[1].kernel.get_value()


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
