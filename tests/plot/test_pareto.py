"""The Pareto figure draws what the contest says."""

import io

import numpy as np
import pytest

from koopjax import compress, plot

METHODS = {"koopman_chain": 0.02, "fisher": 0.04, "magnitude": 3.0}


def contest(dataset="mnist", tracks=("fine-tuned",), whole=0.98):
    summary = [
        {
            "track": track, "method": method, "budget": f"{ratio}x", "ratio": ratio + 0.2,
            "accuracy": whole - fall * ratio / 100, "std": 0.003 if method == "fisher" else None,
        }
        for track in tracks
        for ratio in (100, 10, 30)
        for method, fall in METHODS.items()
    ]  # fmt: skip
    summary.append({**summary[0], "budget": "200x", "accuracy": None, "ratio": None, "std": None})
    originals = {"0": {"accuracy": whole - 0.01}, "1": {"accuracy": whole + 0.01}}
    return {"dataset": dataset, "summary": summary, "originals": originals}


def curves(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_a_line_a_method_by_ratio_with_a_band_and_the_original():
    given = contest()
    figure = plot.pareto(given)
    (axes,) = figure.axes
    drawn = curves(axes)
    for method in METHODS:
        rows = [r for r in given["summary"] if r["method"] == method and r["accuracy"] is not None]
        rows.sort(key=lambda r: r["ratio"])
        np.testing.assert_allclose(
            drawn[method].get_xydata(), [(r["ratio"], r["accuracy"]) for r in rows]
        )
    assert axes.get_xscale() == "log"
    flat = [line for line in axes.get_lines() if len(set(line.get_ydata())) == 1]
    assert [line.get_ydata()[0] for line in flat] == [pytest.approx(0.98)]
    bands = [np.asarray(c.get_paths()[0].vertices) for c in axes.collections]
    reach = {round(float(np.ptp(v[np.isclose(v[:, 0], 10.2), 1])), 6) for v in bands}
    assert reach == {0.0, 0.006}


def test_koopman_is_thicker_in_its_own_colour_and_first_in_the_legend():
    figure = plot.pareto(contest(), names={"fisher": "by Fisher's information"})
    drawn = curves(figure.axes[0])
    assert drawn["koopman_chain"].get_linewidth() > 1.5 * drawn["fisher"].get_linewidth()
    assert drawn["koopman_chain"].get_color() == plot.COLOURS["koopman_chain"]
    assert len({line.get_color() for name, line in drawn.items() if name in METHODS}) == 3
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ["koopman chain", "by Fisher's information", "magnitude", "original"]


def test_a_collapsed_method_leaves_at_the_lower_edge():
    axes = plot.pareto(contest()).axes[0]
    low, high = axes.get_ylim()
    assert low > 0.9  # magnitude has fallen below zero, the best to 0.96
    assert low < 0.98 - 0.04
    assert high > 0.98


def test_a_single_point_has_room_and_long_names_fit():
    given = contest()
    given["summary"] = given["summary"][:1]
    figure = plot.pareto(given, names={"koopman_chain": "a chain of two Koopman matrices " * 2})
    low, high = figure.axes[0].get_ylim()
    assert low < 0.961
    assert high > 0.98
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_panels_by_track_and_by_data_set():
    tracks = ("any-bits", "fine-tuned", "one-shot")
    one = plot.pareto(contest(tracks=tracks))
    assert [axes.get_title("left") for axes in one.axes if axes.get_lines()] == [
        "MNIST, one-shot", "MNIST, fine-tuned, float32", "MNIST, fine-tuned, any bits",
    ]  # fmt: skip
    both = plot.pareto([contest(tracks=tracks), contest("fashion_mnist", tracks[1:])])
    assert [axes.get_title("left") for axes in both.axes[:2]] == [
        "MNIST, one-shot", "Fashion-MNIST, one-shot",
    ]  # fmt: skip
    assert len(both.axes) == 6
    assert [t.get_text() for t in both.axes[5].texts] == ["no results"]
    assert [bool(axes.get_xlabel()) for axes in both.axes] == [False] * 3 + [True, True, False]
    chosen = plot.pareto(contest(tracks=tracks), tracks=["one-shot"], methods=["fisher"])
    assert [len(axes.get_lines()) for axes in chosen.axes] == [2]
    for figure in (one, both, chosen):
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_a_pareto_itself_is_drawn_as_its_file_is():
    points = [
        compress.Point(
            track="one-shot", method="koopman", budget="10x", seed=seed, family="koopman",
            accuracy=0.9 + 0.02 * seed, ratio=10.5, stored_bytes=10, parameters=3,
            original_accuracy=0.95, seconds=1.0,
        )
        for seed in (0, 1)
    ]  # fmt: skip
    given = compress.Pareto(points, {}, {0: {"accuracy": 0.95}, 1: {"accuracy": 0.97}})
    axes = plot.pareto(given).axes[0]
    np.testing.assert_allclose(curves(axes)["koopman"].get_xydata(), [(10.5, 0.91)])
    assert axes.get_title("left") == "one-shot"


def test_nothing_to_draw_is_one_clear_error():
    with pytest.raises(ValueError, match="got none; try"):
        plot.pareto({"summary": [], "originals": {}})
    with pytest.raises(ValueError, match="got none; try"):
        plot.pareto(contest(), tracks=["one-shot"])


def test_results_with_a_contest_have_its_figure():
    results = {"original": {"accuracy": 0.98, "stored_bytes": 9}, "pareto": contest(),
               "compressed": [{"accuracy": 0.9}]}  # fmt: skip
    assert set(plot.figures(results)) == {"pareto"}
