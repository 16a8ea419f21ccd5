"""Figures carry the data that they were given."""

import io
import itertools
import json
import pathlib

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

import koopjax.plot as plot

RESULTS = pathlib.Path(__file__).parent.parent / "report" / "results.json"


@pytest.fixture
def results():
    return json.loads(RESULTS.read_text())


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_ladder_has_one_dot_a_dictionary_at_its_accuracy(results):
    figure = plot.accuracy_ladder(results)
    whole, close = figure.axes
    rows = [row for row in results["replaced"] if row["rank"] is None]
    assert ticks(whole.yaxis) == [row["dictionary"] for row in rows]
    dots = {c.lines[0].get_ydata()[0]: c.lines[0].get_xdata()[0] for c in whole.containers}
    assert dots == {i: row["accuracy"] for i, row in enumerate(rows)}
    low, high = close.get_xlim()
    assert low < results["original"]["accuracy"] < high
    # What lies left of the close-up is written there as a number.
    outside = [row["accuracy"] for row in rows if not low <= row["accuracy"] <= high]
    assert [t.get_text() for t in close.texts] == [f"◂ {a:.3f}" for a in outside]


def test_rank_curve_has_a_panel_for_each_truncation(results):
    figure = plot.rank_curve(results)
    ranked = [row for row in results["replaced"] if row["rank"] is not None]
    ranked = [row for row in ranked if row["target"] == "state"]
    assert len(figure.axes) == len({row["truncation"] for row in ranked})
    drawn = lines(figure.axes[0])
    for name in {row["dictionary"] for row in ranked}:
        own = [r for r in ranked if r["dictionary"] == name and r["truncation"] == "output"]
        own.sort(key=lambda row: row["rank"])
        np.testing.assert_allclose(drawn[name], [(r["rank"], r["accuracy"]) for r in own])


def test_budget_curve_is_in_kibibytes(results):
    axes = plot.budget_curve(results).axes[0]
    for container in axes.containers:
        own = [r for r in results["compressed"] if r["method"] == container.get_label()]
        own.sort(key=lambda row: row["stored_bytes"])
        want = [(r["stored_bytes"] / 1024, r["accuracy"]) for r in own]
        np.testing.assert_allclose(container.lines[0].get_xydata(), want)
    assert {c.get_label() for c in axes.containers} == {r["method"] for r in results["compressed"]}


def test_every_figure_renders_without_overlapping_labels(results):
    figures = plot.figures(results)
    assert set(figures) == {
        "accuracy_ladder", "rank_curve", "singular_values", "confusion", "disagreements",
        "budget_curve",
    }  # fmt: skip
    for figure in figures.values():
        assert isinstance(figure, Figure)
        figure.savefig(io.BytesIO(), format="png", dpi=50)
        for axes in figure.axes:
            boxes = [
                label.get_window_extent()
                for label in axes.get_xticklabels()
                if label.get_text() and label.get_visible()
            ]
            boxes.sort(key=lambda box: box.x0)
            assert all(a.x1 <= b.x0 + 1 for a, b in itertools.pairwise(boxes))


def test_singular_values_are_sorted_and_relative():
    axes = plot.singular_values({"affine": [1.0, 4.0, 2.0], "rbf": [3.0, 0.0]}).axes[0]
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["affine"], [(1, 1.0), (2, 0.5), (3, 0.25)])
    np.testing.assert_allclose(drawn["rbf"], [(1, 1.0)])
    assert axes.get_yscale() == "log"
    raw = plot.singular_values(np.array([4.0, 2.0]), normalise=False).axes[0]
    np.testing.assert_allclose(raw.get_lines()[0].get_ydata(), [4.0, 2.0])


def test_spectrum_shows_eigenvalues_circle_and_residuals():
    z = np.array([0.9, 0.5 + 0.5j, 0.5 - 0.5j, -1.5])
    figure = plot.spectrum(z, np.array([1e-8, 1e-3, 1e-3, 0.0]), exact=[0.9])
    axes = figure.axes[0]
    estimates, exact = axes.collections
    offsets = sorted(map(tuple, np.asarray(estimates.get_offsets()).tolist()))
    assert offsets == sorted((v.real, v.imag) for v in z)
    assert np.asarray(exact.get_offsets()).tolist() == [[0.9, 0.0]]
    assert axes.patches[0].get_radius() == 1
    assert axes.get_xlim()[0] < -1.5
    assert len(figure.axes) == 2  # the colour bar of the residuals
    assert len(plot.spectrum(z).axes) == 1


def test_confusion_writes_the_counts_and_colours_only_mistakes():
    matrix = np.array([[5, 1], [0, 7]])
    axes = plot.confusion(matrix, ["cat", "dog"]).axes[0]
    assert sorted(t.get_text() for t in axes.texts) == ["1", "5", "7"]
    assert ticks(axes.yaxis) == ["cat", "dog"]
    image = axes.images[0].get_array()
    assert image[1, 0, 3] == 0
    assert image[0, 1, 3] > image[0, 0, 3]
    assert len(plot.confusion(matrix, other=matrix).axes) == 2
    with pytest.raises(ValueError, match="square"):
        plot.confusion(np.ones((2, 3)))


def test_disagreements_name_truth_and_both_answers():
    pixels = np.eye(3)[..., None].tolist()
    example = {"pixels": pixels, "label": 7, "original": 7, "replaced": 1}
    figure = plot.disagreements([example] * 8, limit=7)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 7
    assert drawn[0].get_title() == "is 7\n7 → 1"
    np.testing.assert_allclose(drawn[0].images[0].get_array(), np.eye(3))


def test_training_has_losses_left_and_accuracies_right():
    history = {"loss": [1.0, 0.5], "val_loss": [1.1, 0.7], "val_accuracy": [0.5, 0.9], "lr": [1, 1]}
    left, right = plot.training(history).axes
    assert set(lines(left)) == {"loss", "val_loss"}
    np.testing.assert_allclose(lines(right)["val_accuracy"], [(1, 0.5), (2, 0.9)])
    by_epoch = plot.training([{"loss": 1.0}, {"loss": 0.5}]).axes[0]
    np.testing.assert_allclose(lines(by_epoch)["loss"], [(1, 1.0), (2, 0.5)])
    with pytest.raises(ValueError, match="expected curves"):
        plot.training({"lr": [1.0]})


def test_colours_are_fixed_by_name_and_legible_on_white():
    assert plot.colour("degree 2, to the logits") == plot.colour("degree 2")
    assert plot.colour("random_fourier") == plot.COLOURS["random fourier"]
    assert plot.colour("something new") == plot.colour("something new")
    for hue in plot.COLOURS.values():
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4
                  for v in colors.to_rgb(hue)]  # fmt: skip
        luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
        assert 1.05 / (luminance + 0.05) >= 3.0  # WCAG's bar for graphics


@pytest.mark.parametrize("draw", [plot.accuracy_ladder, plot.rank_curve, plot.budget_curve])
def test_nothing_to_draw_is_one_clear_error(draw):
    empty = {"original": {"accuracy": 0.9, "stored_bytes": 9}, "replaced": [], "compressed": []}
    with pytest.raises(ValueError, match="got none; try"):
        draw(empty)


def test_no_global_state_is_touched(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot.figures(results)
    assert dict(matplotlib.rcParams) == before
