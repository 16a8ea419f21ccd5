"""Stored models that must read for all time: what is in them, and how they are made.

    python -m tests.goldens.files [case ...] [--anew]

makes the files in `files/` that are missing, or the cases named, and beside them `outputs.npz`: an
input and what each loaded file gives for it. An existing file is never made again without `--anew`:
one that reads no more is a break of the format, not a golden to renew.

Public names alone are used here. Files of forms without a name in the format are loaded into a
template, the same model of zeros.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import edmd, export, nn, observables as obs, tensor_edmd, tt
from tests.goldens import networks, pieces
from tests.goldens.pieces import DICTIONARIES, IMAGES, Case, D, Draw, Q, X, all_numbers, call, pair

FOLDER = pathlib.Path(__file__).parent / "files"
OUTPUTS = FOLDER / "outputs.npz"
LARGEST = 4096  # bytes of a file


CASES = {**pieces.CASES, **networks.CASES}


# Fits and trains ------------------------------------------------------------------------------

SNAPSHOTS = np.random.default_rng(2).normal(size=(60, D)).astype(np.float32)
AFTER = np.tanh(SNAPSHOTS @ np.random.default_rng(3).normal(size=(D, D)) / 2).astype(np.float32)


def predict(fit):
    return fit.predict(X)


def koopman(psi, target, draw):
    """A fit; its template is put together by hand."""
    psi = psi(draw)
    if not draw.zeros:
        return edmd.fit(psi, SNAPSHOTS, AFTER, solver=edmd.Ridge(1e-3), target=target)
    p = psi.size(D)
    q = p if target is None else D
    info = edmd.Info(*[jnp.zeros(())] * 7)
    readout = draw(p, D) if target is None else None
    return edmd.Koopman(psi, target, draw(p, q), readout, info, jnp.int32(0))


def cores(draw, shapes, kind=tt.TTMatrix):
    return kind(tuple(draw(*shape) for shape in shapes))


MATRIX = [(1, 2, 1, 2), (2, 3, Q, 1)]


def product(draw):
    return obs.Compose(pair(draw), obs.Product((obs.CosSin(), obs.Polynomial1D(2))))


def tensor_info(draw):
    return tensor_edmd.TensorInfo(*(draw.positive() for _ in range(4)), history=draw(3, 2))


def tensor_spectrum(draw):
    vectors = draw(3, 3) + 1j * draw(3, 3)
    return tensor_edmd.TensorSpectrum(
        product(draw), cores(draw, [(1, 2, 1, 2), (2, 3, 3, 1)]), vectors[0], vectors, draw(3, D),
        tensor_info(draw), jnp.int32(0),
    )  # fmt: skip


def kernel_koopman(draw):
    psi = obs.ProductKernel(obs.Product.of(obs.CosSin(0.5), D), 0.5 * jnp.tanh(draw(7, D)))
    info = tensor_edmd.KernelInfo(*(draw.positive() for _ in range(7)))
    return tensor_edmd.KernelKoopman(psi, draw(7, Q), None, info, jnp.int32(0))


def padded_koopman(draw):
    psi = obs.Compose(pair(draw), obs.Product.of(obs.CosSin(), 2))
    whole = lambda n: np.int32(0 if draw.zeros else n)
    ranks = whole(1) * np.array([1, 2, 1], np.int32)
    kept, output = np.zeros((2, 2, 2, 2), np.float32), np.zeros((2, 2, Q, 2), np.float32)
    kept[0, 0], output[..., 0] = draw(2, 2), draw(2, 2, Q)
    return tensor_edmd.PaddedKoopman(
        psi, kept, output, whole(1), ranks, whole(2), tensor_info(draw), draw(), draw(), whole(0),
        whole(3), whole(0),
    )  # fmt: skip


def approximation(draw):
    orders = [jnp.asarray(draw.rng.permutation(n), jnp.int32) for n in (6, 4)]
    info = tensor_edmd.MatrixInfo(draw(), draw(), draw(3), draw(), jnp.zeros(2, jnp.int32))
    return tensor_edmd.MatrixApproximation(cores(draw, MATRIX), *orders, info, jnp.int32(0))


def padded_train(draw):
    """Two cores of 2 and 3 indices, rank 2."""
    kept = np.zeros((2, 2, 3, 2), np.float32)
    kept[0, :1, :2], kept[1, :, :, :1] = draw(1, 2, 2), draw(2, 3, 1)
    ranks, modes = np.array([[1, 0], [1, 1], [1, 0]]), np.array([[1, 1, 0], [1, 1, 1]])
    return tt.PaddedTT(*(jnp.asarray(a, jnp.float32) for a in (kept, ranks, modes)))


@jax.jit
def dense(model):
    return model.to_dense()


def reordered(model):
    rows, columns = np.argsort(model.row_order), np.argsort(model.column_order)
    return np.asarray(dense(model.train))[np.ix_(rows, columns)]


def generator(draw):
    info = edmd.Info(*(draw.positive() for _ in range(7)), scores=draw(3))
    return edmd.Generator(obs.Monomials(1), draw(7, 7), draw(7, D), info, jnp.int32(0))


def brief_tree(draw):
    """A tree of arrays, lists and numbers."""
    return {
        "w": draw(3, 2, dtype=jnp.bfloat16), "h": draw(3, dtype=jnp.float16), "n": draw(2),
        "list": [draw.integers(0, 9, 5), float(draw(1)[0]), np.asarray(draw(2), np.float64)],
    }  # fmt: skip


CASES |= {
    "koopman": Case(
        functools.partial(koopman, DICTIONARIES["orthogonal"], None), predict, template=True
    ),
    "koopman_rbf": Case(
        functools.partial(koopman, DICTIONARIES["gaussian_rbf"], None), predict, template=True
    ),
    "koopman_onto_states": Case(
        functools.partial(koopman, DICTIONARIES["monomials"], obs.Identity()),
        predict,
        template=True,
    ),
    "koopman_layer": Case(
        lambda draw: nn.from_koopman(koopman(DICTIONARIES["standardize"], None, draw), 3)
    ),
    "generator": Case(generator, lambda fit: np.asarray(call(fit.psi)) @ fit.matrix, template=True),
    "tensor_koopman": Case(
        lambda draw: tensor_edmd.TensorKoopman(
            product(draw), cores(draw, MATRIX), tensor_info(draw), jnp.int32(0)
        ),
        predict,
        template=True,
    ),
    "tensor_spectrum": Case(tensor_spectrum, all_numbers, template=True),
    "kernel_koopman": Case(kernel_koopman, all_numbers, template=True),
    "padded_koopman": Case(padded_koopman, predict, template=True),
    "matrix_approximation": Case(approximation, reordered, template=True),
    "tt_matrix": Case(functools.partial(cores, shapes=MATRIX), dense, template=True),
    "tensor_train": Case(
        functools.partial(cores, shapes=[(1, 2, 2), (2, 3, 1)], kind=tt.TensorTrain),
        all_numbers,
        template=True,
    ),
    "padded_tt": Case(padded_train, all_numbers, template=True),
    "plain_tree": Case(brief_tree, all_numbers, template=True),
}


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


# Arrays: each form and dtype of the format ------------------------------------------------------


def spotted(rng, rows, columns):
    """A mask with rows and columns of their own density."""
    share = np.linspace(0, 1, rows)[:, None] ** 3 * rng.random(columns)[None, :]
    return rng.random((rows, columns)) < share


def few(rng, *shape):
    """Steps -7, ..., 7, the small ones more often."""
    return np.clip(np.rint(2 * rng.normal(size=shape)), -7, 7)


def many(rng, *shape):
    """Steps up to 60, one of which is the scale of its column itself."""
    steps = rng.integers(1, 60, shape) * rng.choice([-1, 1], shape)
    steps[0] = 1
    return steps


def scaled(steps, scales):
    return (scales.astype(np.float32) * steps.astype(np.float32)).astype(np.float32)


def signed(rng, *shape, axis):
    """Steps whose signs stay along an axis."""
    signs = np.where(np.cumsum(rng.random(shape) < 0.04, axis=axis) % 2, 1, -1)
    return signs * rng.integers(1, 4, shape)


ARRAYS = {
    "raw": lambda rng: rng.normal(size=(3, 4)).astype(np.float32),
    "equal": lambda rng: np.full((30, 5), 2.5, np.float32),
    "bitmask": lambda rng: np.where(rng.random(24) < 0.5, rng.normal(size=24), 0.0),
    "rice": lambda rng: rng.random((90, 40)) < 0.002,
    "rice by columns": lambda rng: np.isin(np.arange(3600).reshape(90, 40), [200, 1200, 2600]),
    "lzma": lambda rng: np.tile(rng.random(4096) < 0.5, 4),
    "deflate": lambda rng: np.tile(rng.random(128) < 0.5, 30),
    "arithmetic": lambda rng: spotted(rng, 60, 40),
    "arithmetic by columns": lambda rng: spotted(rng, 40, 60).T,
    "increasing": lambda rng: np.sort(rng.choice(3000, 60, replace=False)).astype(np.int32),
    "narrow": lambda rng: rng.integers(-90_000, 90_000, 20),
    "palette": lambda rng: rng.normal(size=5)[rng.integers(0, 5, (12, 12))].astype(np.float16),
    "grid": lambda rng: scaled(few(rng, 12, 12) + 9, np.array(0.3)),
    "grid a column": lambda rng: scaled(many(rng, 30, 4), rng.uniform(0.1, 1, (1, 4))),
    "grid a row": lambda rng: scaled(many(rng, 30, 4).T, rng.uniform(0.1, 1, (4, 1))),
    "symbols": lambda rng: few(rng, 20, 20).astype(np.int8),
    "symbols by rows": lambda rng: signed(rng, 24, 24, axis=1).astype(np.int8),
    "symbols by columns": lambda rng: signed(rng, 24, 24, axis=0).astype(np.int8),
    # Too many for the adaptive coder.
    "symbols counted": lambda rng: rng.choice([7, 90, 100], 19_000, p=[0.998, 0.001, 0.001]).astype(
        np.uint8
    ),
}
#: Every dtype of the format.
DTYPES = [
    "float32", "bfloat16", "float16", "float64", "bool", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def array(name, draw):
    """NumPy's arrays stay NumPy's, whatever the precision of JAX."""
    made = ARRAYS[name](np.random.default_rng(5))
    return {"a": np.zeros_like(made) if draw.zeros else made}


def every_dtype(draw):
    rng = np.random.default_rng(6)
    made = {name: (9 * rng.random(5)).astype(jnp.dtype(name)) for name in DTYPES}
    made["complex64"] = made["complex64"] * np.complex64(1j)
    odd = np.array([0x80000000, 0x7FC12345, 0x7F800000, 0x00000001], np.uint32)
    made |= {"odd": odd.view(np.float32), "empty": np.zeros((0, 3), np.float32)}
    made |= {"one": np.float32(2.5).reshape(()), "complex": made["complex128"] * (2 - 1j)}
    return jax.tree.map(np.zeros_like, made) if draw.zeros else made


def as_bytes(tree):
    """Every bit of the arrays of a tree."""
    return np.concatenate([np.frombuffer(a.tobytes(), np.uint8) for a in leaves(tree)])


CASES |= {
    f"array_{name.replace(' ', '_')}": Case(
        functools.partial(array, name),
        lambda held: held["a"],
        template=True,
        forms=(name.split(" a ")[0] if "grid" in name else name.split(" ")[0],)
        if name.startswith(("grid", "symbols"))
        else (name,),
        slack=64 if name in ("lzma", "deflate") else 0,
    )
    for name in ARRAYS
}
CASES["array_dtypes"] = Case(every_dtype, as_bytes, template=True)


# Making them -----------------------------------------------------------------------------------


def path(name):
    return FOLDER / f"{name}.koopjax"


def result(case, loaded):
    """What a loaded file gives, in a dtype that NumPy stores."""
    out = np.asarray(case.run(loaded))
    known = out.dtype.isbuiltin == 1
    return out if known else out.astype(np.float32)


def read_outputs():
    with np.load(OUTPUTS, allow_pickle=False) as held:
        return dict(held)


def main(names, anew):
    """Make the files named, or all that are missing; see the top of this module."""
    FOLDER.mkdir(exist_ok=True)
    outputs = read_outputs() if OUTPUTS.exists() else {}
    for key, inputs in (("input", X), ("images", IMAGES)):
        if not np.array_equal(outputs.setdefault(key, inputs), inputs):
            raise SystemExit(f"{OUTPUTS} is of other inputs")
    held = [name for name in names if path(name).exists()]
    if held and not anew:
        raise SystemExit(f"{', '.join(held)}: exists and must read for all time; --anew replaces")
    for name in names or [name for name in CASES if anew or not path(name).exists()]:
        case = CASES[name]
        with jax.numpy_rank_promotion("raise"):
            size = export.save(case.make(Draw(name)), path(name))
            outputs[name] = result(case, case.load(path(name)))
        print(f"{name}: {size} bytes", flush=True)
        if size > LARGEST:
            raise SystemExit(f"more than {LARGEST} bytes")
        np.savez_compressed(OUTPUTS, allow_pickle=False, **outputs)
    print(f"{OUTPUTS.name}: {OUTPUTS.stat().st_size} bytes")


if __name__ == "__main__":
    # By its name, since files hold the paths of classes of one's own.
    import tests.conftest  # noqa: F401  (its settings: a golden is made as it is compared)
    from tests.goldens import files

    parser = argparse.ArgumentParser(description="Makes stored models that must read for all time.")
    parser.add_argument("names", nargs="*", choices=[[], *files.CASES], metavar="case")
    parser.add_argument("--anew", action="store_true", help="replace files that exist")
    arguments = parser.parse_args()
    files.main(arguments.names, arguments.anew)
