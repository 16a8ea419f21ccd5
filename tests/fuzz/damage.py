"""Damaged files of each stored form, and what becomes of reading them.

A file is damaged as disks and transfers do it (cut, a bit flipped, a part written over), which its
checksum tells; and as if by a writer that is wrong, with the checksum made to match: bytes of the
header or of the arrays changed, values of the header exchanged for others, sizes declared that are
not there. Every one has to end in `FileError`, or give a model where it still is a file of one.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import signal
import tempfile
import traceback
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import nnx

from koopjax import export, models, nn, observables as ob, surgery, tt
from koopjax.export import _file
from tests.fuzz.judge import Hang, Outcome, alarm, judge_error
from tests.nets import filled

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="damage"))
#: Bytes that reading a small file may take at most at once, whatever it says.
MOST = 400 << 20
SECONDS = 20.0


@functools.cache
def stored() -> dict[str, tuple[bytes, Any]]:
    """The bytes of a small file of each stored form, and the template that it needs, if any."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4)).astype(np.float32)
    dense = rng.normal(size=(12, 9)).astype(np.float32)
    sparse = np.where(rng.random((12, 9)) < 0.3, dense, 0).astype(np.float32)
    few = rng.integers(-3, 4, (40, 30)).astype(np.float32)
    mlp = filled(lambda: models.MLP((4, 6, 6, 3), rngs=nnx.Rngs(0)))
    span = ("layers.0/relu", "layers.1/relu")
    holes = np.where(rng.random((60, 50)) < 0.05, 1.5, 0).astype(np.float32)
    tree = {
        "raw": dense, "few": few / 8, "holes": holes, "one": np.ones((5, 5), np.float32),
        "increasing": np.cumsum(rng.integers(1, 9, 40)), "narrow": rng.integers(0, 5, 50),
        "mask": rng.random((30, 20)) < 0.2, "scalar": np.float64(2.5), "none": np.zeros((0, 3)),
        "wide": rng.integers(-(2**60), 2**60, 5), "half": dense.astype(np.float16),
        "codes": rng.integers(0, 200, (40, 40)).astype(np.uint8),
        "complex": dense[:2].astype(np.complex64),
    }  # fmt: skip
    psi = ob.Compose(ob.Standardize.fit(x), ob.Monomials(2))
    made: dict[str, tuple[Any, Any]] = {
        "dense": (nn.Dense(dense, dense[0]), None),
        "low rank": (nn.LowRank(dense[:, :2], dense[:2]), None),
        "sparse": (nn.Sparse.from_dense(sparse), None),
        "clustered": (nn.Clustered.from_dense(dense, 4), None),
        "quantized": (nn.Quantized.from_dense(dense, 4), None),
        "train": (nn.TT.create(jax.random.key(0), (2, 3, 2), (2, 2, 2), 2), None),
        "stack": (nn.Stack([nn.Dense(dense), nn.Dense(dense.T.copy())], ["relu", "tanh"]), None),
        "dictionary": (psi, None),
        "product": (ob.Product.of(ob.Polynomial1D(2), 30), None),
        "kernel": (ob.ProductKernel(ob.Product.of(ob.CosSin(0.2), 4), x[:5]), None),
        "neural": (ob.Neural(filled(lambda: models.MLP((4, 3), rngs=nnx.Rngs(0)))), None),
        "mlp": (mlp, None),
        "cnn": (filled(lambda: models.CNN((4, 4, 1), 2, (2,), 3, rngs=nnx.Rngs(0))), None),
        "block": (nn.KoopmanBlock(psi, nn.Dense(np.resize(dense, (15, 4)))), None),
        "spliced": (surgery.splice(mlp, x, span, nn.Dense(np.eye(6, dtype=np.float32))), None),
        "tree": (tree, jax.tree.map(np.zeros_like, tree)),
        "cores": (tt.random(jax.random.key(0), (3, 4, 3), 2), None),
    }  # fmt: skip
    made["cores"] = (made["cores"][0], jax.tree.map(jnp.zeros_like, made["cores"][0]))
    files = {}
    for name, (model, template) in made.items():
        export.save(model, FOLDER / "whole")
        files[name] = ((FOLDER / "whole").read_bytes(), template)
        export.load(FOLDER / "whole", template)
    return files


NAMES = [
    "dense", "low rank", "sparse", "clustered", "quantized", "train", "stack", "dictionary",
    "product", "kernel", "neural", "mlp", "cnn", "block", "spliced", "tree", "cores",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2, 63, 65, 1 << 20, 1 << 31, (1 << 63) - 1, 1.5, float("nan"), "", "x",
    "K", "T", "mlp", "Monomials", "Neural", b"", b"\0" * 9, [], [[]], [1], [1, 2], {}, {"a": 1},
    [1, 10**9, ["Polynomial1D", 2]], [10**6, 2, 2, 2], ["Identity"], ["mlp", {"sizes": [9] * 999}],
    ["mlp", {"sizes": [1 << 30, 1 << 30]}], ["residual_mlp", {"d_in": 2, "width": 2,
    "depth": 10**8, "classes": 2}], [4, None, "", [10**6, 2, 2, 2]], "x" * 300, [[[[[[1]]]]]],
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Damage:
    """A file of a form, what is done to it, and the numbers that say where."""

    form: str
    how: str
    seed: int

    def __str__(self) -> str:
        return f"{self.form}: {self.how} ({self.seed})"


def prepare() -> None:
    """Make the files, which takes longer than a call may."""
    stored()


def draw(seed: int, number: int) -> Damage:
    """The damage of a number: the same for the same seed."""
    rng = np.random.default_rng([seed, number])
    form, how = str(rng.choice(NAMES)), str(rng.choice(list(WAYS)))
    return Damage(form, how, int(rng.integers(1 << 30)))


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _over(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, 20))
    return data[:start] + rng.bytes(length) + data[start + length :]


def _swap(data: bytes, rng: np.random.Generator) -> bytes:
    a, b, c = sorted(int(i) for i in rng.integers(0, len(data) + 1, 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _framed(change: Callable[[bytes, np.random.Generator], bytes]) -> Any:
    """The change of a body, in a frame whose length and checksum are right."""

    def changed(data: bytes, rng: np.random.Generator) -> bytes:
        return _file.frame(change(_file.unframe(data, "whole"), rng))

    return changed


def _byte(body: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(body)))
    value = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
    return body[:at] + bytes([int(value)]) + body[at + 1 :]


def _size(body: bytes, rng: np.random.Generator) -> bytes:
    """A huge number in place of a byte, where a size may stand."""
    at = int(rng.integers(len(body)))
    huge = _file.put_varint(int(1 << rng.integers(20, 69)))
    return body[:at] + huge + body[at + 1 :]


def _varint(body: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(body)))
    return body[:at] + b"\xff" * int(rng.integers(11, 5000)) + body[at + 1 :]


def _list(body: bytes, rng: np.random.Generator) -> bytes:
    """A list, text or map in the header that says it is very long."""
    at = int(rng.integers(min(len(body), 40)))
    code = rng.choice([0xDD, 0xDF, 0xDB, 0xC6, 0xC9])
    return body[:at] + bytes([int(code)]) + b"\x7f\xff\xff\xff" + body[at + 1 :]


def _deep(body: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(min(len(body), 20)))
    return body[:at] + b"\x91" * int(rng.integers(100, 100_000)) + body[at:]


def _head(body: bytes, rng: np.random.Generator) -> bytes:
    """Another value at some place of the header's tree."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    node, rest = unpacker.unpack(), body[unpacker.tell() :]
    places: list[tuple[Any, Any]] = []
    waiting = [node]
    while waiting:
        part = waiting.pop()
        keys = range(len(part)) if isinstance(part, list) else list(part)
        for key in keys:
            places.append((part, key))
            if isinstance(part[key], list | dict):
                waiting.append(part[key])
    part, key = places[rng.integers(len(places))]
    draw = rng.random()
    value = VALUES[rng.integers(len(VALUES))]
    if draw < 0.1 and isinstance(part, list):
        del part[key]
    elif draw < 0.2 and isinstance(part, list):
        part.insert(key, value)
    elif draw < 0.3:
        other, there = places[rng.integers(len(places))]
        part[key] = msgpack.unpackb(msgpack.packb(other[there]))
    else:
        part[key] = value
    return msgpack.packb(node) + rest


def _more(body: bytes, rng: np.random.Generator) -> bytes:
    return body + rng.bytes(int(rng.integers(1, 50)))


def _cut_body(body: bytes, rng: np.random.Generator) -> bytes:
    return body[: rng.integers(len(body))]


WAYS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut": _cut,
    "a bit flipped": _flip,
    "written over": _over,
    "parts exchanged": _swap,
    "a byte of the body": _framed(_byte),
    "another byte of the body": _framed(_byte),
    "a huge size": _framed(_size),
    "an endless number": _framed(_varint),
    "a long list": _framed(_list),
    "deep lists": _framed(_deep),
    "another value in the header": _framed(_head),
    "yet another value in the header": _framed(_head),
    "two other values in the header": _framed(lambda b, rng: _head(_head(b, rng), rng)),
    "parts of the body exchanged": _framed(_swap),
    "bytes behind": _framed(_more),
    "the body cut": _framed(_cut_body),
}


def run(damage: Damage, limit: float = SECONDS, show: bool = False) -> Outcome | None:
    """What becomes of reading a damaged file: none where it is as it was."""
    whole, template = stored()[damage.form]
    try:
        data = WAYS[damage.how](whole, np.random.default_rng(damage.seed))
    except (ValueError, TypeError, OverflowError, KeyError, RecursionError):
        return None  # the changed header can't be written
    if data == whole:
        return None
    path = FOLDER / "damaged"
    path.write_bytes(data)
    tracemalloc.start()
    signal.signal(signal.SIGPROF, alarm)
    signal.setitimer(signal.ITIMER_PROF, min(limit, SECONDS))
    outcome = Outcome("right")  # it still is a file of some model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export.load(path, template)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except (Exception, Hang) as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if show:
            traceback.print_exc()
        outcome = judge_error(error, True)
        if outcome.kind == "refused" and not isinstance(error, export.FileError):
            outcome = Outcome("obscure error", outcome.where, outcome.message)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if peak > MOST and outcome.kind in ("right", "refused"):
        return Outcome("out of memory", "export.load", f"{peak >> 20} MiB for {len(data)} bytes")
    return outcome
