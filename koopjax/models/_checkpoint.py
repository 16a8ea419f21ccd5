"""Checkpoints of a training run: whole epochs, atomic, of one model and one run."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core import expected
from koopjax._extras import needed


def _digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _shapes(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _size(tree: Any) -> str:
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]
    # Few digits: the same rule on another device is the same optimizer.
    return f"{sum(np.abs(leaf).sum() for leaf in leaves):.4e}"


def _optimizer(optimizer: Any, state: Any) -> list[str]:
    """What an optimizer does to fixed gradients: settings are hidden in its closures.

    Three steps, so that momentum and a schedule that starts at zero show as well.
    """
    if optimizer is None:
        return ["adamw"]

    def probe(param: Any, step: int) -> Any:
        return np.cos(np.arange(param.size) + step).reshape(param.shape).astype(param.dtype)

    @jax.jit
    def run(params: Any, opt: Any, probes: list[Any]) -> list[Any]:
        found = []
        for grads in probes:
            updates, opt = optimizer.update(grads, opt, params)
            found += [updates, opt]
        return found

    probes = [jax.tree.map(lambda a, k=k: probe(a, k), state.params) for k in range(3)]
    first = _digest(np.frombuffer(repr(_shapes(state.opt)).encode(), np.uint8))
    with jax.numpy_dtype_promotion("standard"):  # as in a step of training
        return [first, *map(_size, run(state.params, state.opt, probes))]


def fingerprint(model: Any, state: Any, plan: Any, key: Any) -> dict[str, Any]:
    """What a run is, so that a checkpoint of another one is recognised: JSON only.

    The initial parameters belong to it: the same architecture from another seed is another run.
    """
    owner = model[0] if isinstance(model, tuple) else model
    loss = plan.loss if hasattr(plan.loss, "__qualname__") else type(plan.loss)
    start = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state.params)]
    return {
        "model": getattr(owner, "__name__", type(owner).__name__),
        "arrays": _shapes((state.params, state.rest)),
        "start": _digest(np.concatenate(start)),
        "key": _digest(jax.random.key_data(key)),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "steps": plan.steps,
        "settings": [float(leaf) for leaf in jax.tree.leaves(plan.hyper)],
        "loss": f"{loss.__module__}.{loss.__qualname__}",
        "optimizer": _optimizer(plan.optimizer, state),
        "data": [list(plan.x.shape), _digest(plan.x), _digest(plan.y)],
    }


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first entry that differs: what, here, in the checkpoint."""
    for what in ours:
        mine, other = ours[what], theirs.get(what)
        if mine == other:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            for name in dict.fromkeys([*mine, *other]):
                if mine.get(name) != other.get(name):
                    return f"array {name}", str(mine.get(name)), str(other.get(name))
        return what, str(mine), str(other)
    return None


class Keeper:
    """The checkpoint folder of one run; made by `keeper`."""

    def __init__(self, folder: pathlib.Path, manager: Any):
        self.folder = folder
        self.manager = manager

    def save(self, epoch: int, state: Any, history: list, run: dict[str, Any]) -> None:
        """Keep an epoch. It appears in the folder only once it is wholly written."""
        ocp = needed("orbax.checkpoint", "checkpoints")
        kept = ocp.args.Composite(
            # A flat list: the structure is known from the run, the leaves alone are stored.
            state=ocp.args.StandardSave(_portable(state)),
            run=ocp.args.JsonSave({"run": run, "history": history}),
        )
        self.manager.save(epoch, args=kept)
        self.manager.wait_until_finished()

    def restore(self, state: Any, run: dict[str, Any]) -> tuple[Any, list]:
        """State and history of the last epoch kept, if it is of this run."""
        ocp = needed("orbax.checkpoint", "checkpoints")
        step = self.manager.latest_step()
        with self._whole():
            found = self.manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))
        # JSON has no tuples and no float32: compare what both sides look like after it.
        other = _difference(json.loads(json.dumps(run)), found.run.get("run", {}))
        if other is not None:
            what, mine, theirs = other
            raise expected(
                f"a checkpoint of this run in {self.folder}, with {what} {mine}",
                theirs,
                "another folder, or resume=False to start anew",
            )
        with self._whole():
            args = ocp.args.Composite(state=ocp.args.StandardRestore(_portable(state)))
            arrays = self.manager.restore(step, args=args).state
            return _from_portable(state, arrays), found.run["history"]

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Around what orbax reads: whatever it says of damaged files, in one line."""
        try:
            yield
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise expected(
                f"a whole checkpoint in {self.folder}",
                f"one that can't be read ({type(error).__name__}: {why})",
                "another folder, or resume=False to start anew",
            ) from error


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _portable(state: Any) -> dict[str, Any]:
    """Leaves by number, random keys as their bits."""
    leaves = jax.tree.leaves(state)
    return {
        f"{k:05d}": jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for k, leaf in enumerate(leaves)
    }


def _from_portable(like: Any, arrays: dict[str, Any]) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    values = [arrays[name] for name in sorted(arrays)]
    back = [
        jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value
        for leaf, value in zip(leaves, values, strict=True)
    ]
    return jax.tree.unflatten(treedef, back)


@contextlib.contextmanager
def keeper(folder: str | os.PathLike | None, *, resume: bool) -> Iterator[Keeper | None]:
    """A `Keeper` for a folder (made where missing), or None where none is named."""
    if folder is None:
        yield None
        return
    ocp = needed("orbax.checkpoint", "checkpoints")
    path = pathlib.Path(folder).expanduser().absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
    with ocp.CheckpointManager(os.fspath(path), options=options) as manager:
        if not resume:
            for step in manager.all_steps():
                manager.delete(step)
        yield Keeper(path, manager)
