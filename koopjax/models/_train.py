"""Training with optax under scan, with validation, progress, checkpoint and resume."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from koopjax._core import (
    NumericalError,
    as_array,
    as_key,
    as_whole,
    check_finite,
    check_integer,
    check_number,
    expected,
    on_device,
)
from koopjax.forms import Definition, form_of
from koopjax.models import _checkpoint, _evaluate, _scores, _step

Metrics = dict[str, float]
Progress = Callable[[int, Metrics], None]
#: `revise(epoch, params, opt_state) -> (params, opt_state)`, of one model or of one lane.
Revise = Callable[[int, Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained model and how it got there.

    Args:
        model: in the form that was given to `train`; the given model itself is left as it was.
        history: for each epoch, `loss`, `accuracy` (for integer labels; both means over the epoch
            while the parameters moved) and, with validation data, `val_loss` and `val_accuracy`.
        opt_state: the optimizer's state at the end, to go on from.
    """

    model: Any
    history: list[Metrics]
    opt_state: Any = None


class TrainSettings(TypedDict, total=False):
    """Keywords of `train` and `train_lanes` that say how a run goes; `train` describes them."""

    batch_size: int
    epoch_size: int | None
    learning_rate: float | None
    weight_decay: float
    warmup: float
    optimizer: optax.GradientTransformation | None
    loss: Callable[[Array, Array], Array] | None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything about a run that does not change while it goes on."""

    form: Definition
    optimizer: optax.GradientTransformation | None
    loss: Callable[[Array, Array], Array]
    batch_size: int
    steps: int
    epochs: int
    hyper: _step.Hyper
    x: Array
    y: Array
    x_val: Array | None
    y_val: Array | None

    @property
    def static(self) -> tuple[Any, ...]:
        """What an epoch is compiled for."""
        return self.form, self.optimizer, self.loss, (self.steps, self.batch_size)

    def validate(self, state: _step.State) -> dict[str, Array]:
        """Metrics on the validation data."""
        if self.x_val is None or self.y_val is None:
            return {}
        batch = min(_evaluate.BATCH, self.x_val.shape[0])
        loss, correct = _evaluate.measure(
            self.form, self.loss, state.params, state.rest, self.x_val, self.y_val, batch
        )
        metrics = {"val_loss": loss}
        if jnp.issubdtype(self.y_val.dtype, jnp.integer):
            metrics["val_accuracy"] = correct
        return metrics


def _data(name: str, x: Any, y: Any, out: jax.ShapeDtypeStruct, loss: Any) -> tuple[Array, Array]:
    """Checked data on the device; `loss` None for cross-entropy, which takes no other numbers."""
    x, y = as_array(f"{name}: x", x), as_array(f"{name}: y", y)
    _evaluate.check_samples(name, x, y)
    check_finite(f"{name}: x", x)
    check_finite(f"{name}: y", y)
    of_all = jax.ShapeDtypeStruct((x.shape[0], *out.shape[1:]), out.dtype)
    if jnp.issubdtype(y.dtype, jnp.integer):
        _scores.check_classes("labels", y, of_all)
    elif loss is None:
        host = np.asarray(y, np.float32)
        total = host if y.size == x.shape[0] else host.sum(axis=-1)
        if y.size != of_all.size or host.min() < 0 or total.max() > 1.01:
            raise expected(
                f"{name}: probabilities of shape {of_all.shape} for a loss of cross-entropy",
                f"{y.dtype} of shape {y.shape} up to {host.max():.3g}",
                "loss=models.squared_error for real numbers",
            )
    return x, y


def _plan(
    formed: Any, x: Any, targets: Sequence[Any], called: dict[str, Any], *, lanes: bool = False,
    epochs: int, x_val: Any, y_val: Any, batch_size: int = 128, epoch_size: int | None = None,
    learning_rate: float | None = None, weight_decay: float = 0.0, warmup: float = 0.0,
    optimizer: optax.GradientTransformation | None = None, loss: Any = None,
) -> _Plan:  # fmt: skip
    """Check the settings and gather them; with `lanes` there are targets of each lane.

    `called` is what is to be called on the host, by name; all others are settings of `train`.
    """
    form, params, rest = formed
    check_integer("models.train: epochs", epochs, 1)
    check_integer("models.train: batch_size", batch_size, 1)
    rate = 1e-3 if learning_rate is None else learning_rate
    given = {"learning_rate": rate, "weight_decay": weight_decay, "warmup": warmup}
    for what, value in given.items():
        check_number(f"models.train: {what}", value)
    rules = [getattr(optimizer, name, None) for name in ("init", "update")]
    if optimizer is not None and not all(map(callable, rules)):
        got = f"{optimizer!r:.60}"
        raise expected("models.train: an optimizer of optax", got, "optax.adam(1e-3)")
    for what, function in {"loss": loss, **called}.items():
        if function is not None and not callable(function):
            raise expected(f"models.train: {what} as a function", f"{function!r:.60}")
    if not jax.tree.leaves(params):
        raise expected(
            "models.train: a model with parameters, floating arrays among its leaves",
            "none (what a function closes over is a constant)",
            "the module itself, or (function, params) with function(params, x)",
        )
    if (x_val is None) != (y_val is None):
        raise expected("models.train: x_val and y_val together", "only one", "both or neither")
    if optimizer is not None and (learning_rate is not None or weight_decay or warmup):
        raise expected(
            "models.train: learning_rate, weight_decay and warmup only without optimizer",
            "both",
            "to put them into the optax optimizer",
        )
    x, y = as_array("models.train: x", x), as_array("models.train: y", targets[0])
    _evaluate.check_samples("models.train", x, y)
    out = _evaluate.check_input("models.train", form, params, rest, x)
    # What a loss of one's own takes is its affair; the accuracy goes by rows all the same.
    if jnp.issubdtype(y.dtype, jnp.integer) or loss in _BY_ROWS:
        _evaluate.check_rows("models.train", form, params, rest, x)
    each = [_data("models.train", x, one, out, loss)[1] for one in (y, *targets[1:])]
    y = jnp.stack(each) if lanes else each[0]
    if x_val is not None:
        x_val, y_val = _data("models.train validation", x_val, y_val, out, loss)
    batch_size, size = min(batch_size, x.shape[0]), x.shape[0]
    if epoch_size is not None:
        size = as_whole("models.train: epoch_size", epoch_size, 1)
        if not batch_size <= size <= x.shape[0]:
            raise expected(
                f"models.train: epoch_size from a batch ({batch_size}) to all samples "
                f"({x.shape[0]})",
                f"{size}",
            )
    steps = size // batch_size
    total = epochs * steps
    numbers = (rate, weight_decay, warmup * total, total)
    hyper = _step.Hyper(*(on_device(np.asarray(n, np.float32), np.float32) for n in numbers))
    loss = loss or _step.cross_entropy
    return _Plan(form, optimizer, loss, batch_size, steps, epochs, hyper, x, y, x_val, y_val)


#: Losses that compare the rows of an output with those of the targets.
_BY_ROWS = (None, _step.cross_entropy, _step.squared_error)


def _epochs(
    plan: _Plan,
    state: _step.State,
    histories: list[list[Metrics]],
    advance: Callable[[int, _step.State], tuple[_step.State, dict[str, Array]]],
    revise: Callable[[int, int, Any, Any], tuple[Any, Any]] | None,
    split: Callable[[_step.State], list[_step.State]],
) -> Iterator[tuple[int, _step.State]]:
    """The epochs that the histories of all lanes lack: number from 1, and the state behind it."""
    for number in range(len(histories[0]) + 1, plan.epochs + 1):
        state, metrics = advance(number - 1, state)
        values = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        if not np.all(np.isfinite(values["loss"])):
            raise NumericalError(
                f"models.train: expected a finite loss, got {values['loss']} in epoch {number}; "
                "try a smaller learning rate, or inputs scaled to [0, 1]"
            )
        lanes = split(state)
        for k, history in enumerate(histories):
            mine = {name: float(value.reshape(-1)[k]) for name, value in values.items()}
            checked = jax.device_get(plan.validate(lanes[k]))
            history.append(mine | {name: float(value) for name, value in checked.items()})
        if revise is not None:
            pairs = [revise(k, number, lane.params, lane.opt) for k, lane in enumerate(lanes)]
            params, opt = pairs[0] if lanes[0] is state else jax.tree.map(_stacked, *pairs)
            state = dataclasses.replace(state, params=params, opt=opt)
        yield number, state


def _stacked(*leaves: Any) -> Array:
    return jnp.stack(leaves)


def train(
    model: Any,
    x: Any,
    y: Any,
    *,
    key: Array,
    epochs: int,
    x_val: Any = None,
    y_val: Any = None,
    progress: Progress | None = None,
    revise: Revise | None = None,
    opt_state: Any = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1,
    resume: bool = True,
    **settings: Unpack[TrainSettings],
) -> TrainResult:
    """Train a model on data in memory.

    AdamW with a cosine schedule, `θ ← θ - η_t (m̂ / (√v̂ + ε) + λ θ)` with
    `η_t = η (1 + cos(π t / T)) / 2` after the warm-up, or any optax optimizer. One epoch is one
    compiled scan; all epochs, seeds and learning rates share one compilation.

    Args:
        model: an `nnx.Module`, a pair `(linen_module, variables)`, a pair `(function, params)` with
            `function(params, x)`, or a callable pytree; left as it is. Of an NNX model, `nnx.Param`
            are trained; other Variables (frozen, batch statistics) change only as a call in
            training mode changes them. A Variable that two modules share stays one; an array at two
            leaves is two parameters, as everywhere in JAX.
        x: samples `(n, ...)`.
        y: integer labels, class probabilities, or what `loss` takes, `(n, ...)`.
        key: shuffles; epoch e uses `fold_in(key, e)`.
        epochs: passes over the data.
        x_val, y_val: measured after each epoch.
        progress: called on the host as `progress(epoch, metrics)`, epochs from 1.
        revise: called on the host after each epoch as `revise(epoch, params, opt_state)`; returns
            both, as they are or changed (pruned, say). `params` is the pytree that the optimizer
            sees. A run that is resumed must be given a function that does the same.
        opt_state: of `optimizer` for these parameters, to begin with in place of its `init`; such
            as `TrainResult.opt_state`.
        checkpoint: folder to keep the last finished epoch in (needs orbax-checkpoint).
        checkpoint_every: epochs between checkpoints; the last epoch is always kept.
        resume: go on from the checkpoint where there is one; else start anew and replace it.
        **settings:
            `batch_size`, samples a step (128); at most `n` are taken;
            `epoch_size`, samples an epoch, drawn anew each time; default `n`, all of them once;
            `learning_rate`, the largest (1e-3);
            `weight_decay`, decoupled, of matrices and kernels alone (0);
            `warmup`, share of all steps with a linearly rising rate (0);
            `optimizer`, an optax transformation in place of AdamW and the three settings before;
            give the same object again, and nothing is compiled anew;
            `loss`, `loss(output, y)` with a scalar value, the same object each time; default
            `cross_entropy`.

    Returns:
        A `TrainResult`. A run that was interrupted and went on from its checkpoint ends with the
        same bits as one that was not.

    Raises:
        ValueError: data that do not fit together or to the model, NaN in them, labels beyond the
            model's outputs, or a checkpoint of another model or run.
        NumericalError: the loss is no longer finite; the checkpoint holds the last good epoch.
    """
    form, params, rest = form_of(model)
    plan = _plan(
        (form, params, rest), x, [y], {"progress": progress, "revise": revise},
        epochs=epochs, x_val=x_val, y_val=y_val, **settings,
    )  # fmt: skip
    key = as_key("models.train", key)
    checkpoint_every = as_whole("models.train: checkpoint_every", checkpoint_every, 1)
    state = _step.init_state(params, rest, plan.optimizer)
    if opt_state is not None:
        state = dataclasses.replace(state, opt=_given(opt_state, state.opt))
    advance = lambda number, state: _step.epoch(
        *plan.static, plan.hyper, state, plan.x, plan.y, jax.random.fold_in(key, number)
    )
    revised = None if revise is None else lambda _, *given: revise(*given)
    history: list[Metrics] = []
    with _checkpoint.keeper(checkpoint, resume=resume) as keeper:
        run = _checkpoint.fingerprint(model, state, plan, key) if keeper else {}
        if keeper and keeper.manager.latest_step() is not None:
            state, history = keeper.restore(state, run)
        going = _epochs(plan, state, [history], advance, revised, lambda state: [state])
        for epoch, state in going:
            if keeper and (epoch % checkpoint_every == 0 or epoch == epochs):
                keeper.save(epoch, state, history, run)
            if progress is not None:
                progress(epoch, history[-1])
    return TrainResult(form.merge(state.params, state.rest), history, state.opt)


def _given(opt_state: Any, like: Any) -> Any:
    """A copy of an optimizer's state, of the structure that is needed here."""
    shapes = lambda tree: [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    same = jax.tree.structure(opt_state) == jax.tree.structure(like)
    if not same or shapes(opt_state) != shapes(like):
        raise expected(
            "models.train: an opt_state of this optimizer for this model", "another structure",
            "the opt_state of a result of the same model and optimizer",
        )  # fmt: skip
    return _copied(opt_state)


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _lanes(models: Any, keys: Any) -> tuple[list[tuple[Any, Any, Any]], Array]:
    """Models of one structure taken apart, and their keys as one array."""
    if not isinstance(models, Iterable):
        raise expected("models.train_lanes: several models", type(models).__name__, "[model]")
    formed = [form_of(model) for model in models]
    several = isinstance(keys, list | tuple) or getattr(keys, "ndim", 0) > 0
    if not several or not formed or len(keys) != len(formed):
        raise expected(
            "models.train_lanes: one key a model",
            f"{len(formed)} models, {len(keys) if several else f'{keys!r:.40}, no'} keys",
            "jax.random.split(key, len(models))",
        )  # fmt: skip
    shapes = [jax.tree.map(jnp.shape, arrays) for _, *arrays in formed]
    differ = any(other[0] != formed[0][0] for other in formed)
    if differ or any(shape != shapes[0] for shape in shapes):
        raise expected(
            "models.train_lanes: models of one structure", "different ones", "train for each"
        )
    return formed, jnp.stack([as_key("models.train_lanes", key) for key in keys])


def train_lanes(
    models: Sequence[Any],
    x: Any,
    y: Any,
    *,
    keys: Sequence[Array],
    epochs: int,
    x_val: Any = None,
    y_val: Any = None,
    progress: Callable[[int, list[Metrics]], None] | None = None,
    revise: Callable[[int, int, Any, Any], tuple[Any, Any]] | None = None,
    opt_states: Sequence[Any] | None = None,
    **settings: Unpack[TrainSettings],
) -> list[TrainResult]:
    """Train several models of one structure at once, as lanes of one vmapped scan.

    Each lane has its own shuffling, and the same result as alone up to rounding. It pays where one
    small model leaves the machine idle, as on a GPU; on a few CPU cores measure before relying on
    it, since batched products of small matrices are slow there.

    Args:
        models: of the same structure, such as one MLP from several seeds.
        keys: one a model, as `key` of `train`.
        progress: called as `progress(epoch, [metrics of each lane])`.
        revise: called after each epoch and for each lane as `revise(lane, epoch, params,
            opt_state)`, as in `train`.
        opt_states: one a model, as `opt_state` of `train`.
        x: as for `train`, shared by all lanes.
        y: shared likewise, or a list with the targets of each lane (each seed's own teacher).
        epochs, x_val, y_val, **settings: as for `train`; shared by all lanes.

    Returns:
        One `TrainResult` a model, in order.

    Raises:
        ValueError: as `train`, or models of different structure, or not one key a model.
    """
    formed, key_stack = _lanes(models, keys)
    form = formed[0][0]
    own = isinstance(y, list | tuple)
    if own and len(y) != len(formed):
        raise expected(f"targets of each of {len(formed)} lanes", f"{len(y)} of them")
    plan = _plan(
        formed[0], x, y if own else [y], {"progress": progress, "revise": revise}, lanes=own,
        epochs=epochs, x_val=x_val, y_val=y_val, **settings,
    )  # fmt: skip
    stacked = jax.tree.map(_stacked, *[tuple(f[1:]) for f in formed])
    state = jax.vmap(lambda p, r: _step.init_state(p, r, plan.optimizer))(*stacked)
    split = lambda state: [
        jax.tree.map(lambda leaf, k=k: leaf[k], state) for k in range(len(formed))
    ]
    if opt_states is not None:
        pairs = zip(opt_states, split(state), strict=True)
        given = [_given(one, lane.opt) for one, lane in pairs]
        state = dataclasses.replace(state, opt=jax.tree.map(_stacked, *given))

    def advance(number: int, state: _step.State) -> Any:
        folded = jax.vmap(lambda key: jax.random.fold_in(key, number))(key_stack)
        return _step.lanes_epoch(*plan.static, own, plan.hyper, state, plan.x, plan.y, folded)

    histories: list[list[Metrics]] = [[] for _ in formed]
    for epoch, reached in _epochs(plan, state, histories, advance, revise, split):
        state = reached
        if progress is not None:
            progress(epoch, [history[-1] for history in histories])
    return [
        TrainResult(form.merge(lane.params, lane.rest), history, lane.opt)
        for lane, history in zip(split(state), histories, strict=True)
    ]
