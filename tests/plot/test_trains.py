"""Figures about tensor trains carry the data that they were given."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import koopjax.plot as plot


def point(degree, rank, accuracy):
    return {"degree": degree, "rank": rank, "accuracy": accuracy, "numbers": 100 * degree * rank}


@pytest.fixture
def plane():
    rows = [point(d, r, 0.9 - 0.3 / (d * r)) for d in (1, 2) for r in (1, 4, 16)]
    return {
        "rows": rows, "original": {"accuracy": 0.9}, "least": {"degree": 2, "rank": 4},
        "nulls": [], "latent": 5, "tolerance": 0.05, "sentence": "A sentence.",
    }  # fmt: skip


@pytest.fixture
def spectrum():
    return {
        "orders": [0.7, 0.2, 0.05], "orders_std": [0.03, 0.02, 0.01], "beyond": 0.05,
        "beyond_std": 0.0, "sentence": "Another one.",
        "coordinates": [
            {"name": f"u{k}", "first": 0.1 * k, "total": 0.15 * k, "total_std": 0.01}
            for k in range(4)
        ],
    }  # fmt: skip


def test_plane_has_a_cell_a_point_with_its_figures(plane):
    figure = plot.plane(plane)
    axes = figure.axes[0]
    texts = [t.get_text() for t in axes.texts]
    assert texts[::2] == [f"{100 * row['accuracy']:.1f}" for row in plane["rows"]]
    assert texts[1::2] == ["100", "400", "1.6k", "200", "800", "3.2k"]
    lost = 100 * np.array([[0.9 - row["accuracy"] for row in plane["rows"]]]).reshape(2, 3)
    np.testing.assert_allclose(axes.collections[0].get_array().reshape(2, 3), lost)
    (outline,) = axes.patches
    assert outline.get_xy() == (0.5, 0.5)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "4", "16"]
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_figures_on_cells_can_be_read(plane):
    """Contrast of text to its cell of at least 3 to 1, over all shades."""

    def luminance(colour):
        c = np.asarray(to_rgb(colour))
        return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126, 0.7152, 0.0722,
        ]  # fmt: skip

    losses = np.geomspace(0.001, 0.9, 40)
    plane["rows"] = [point(1, k + 1, 0.9 - lost) for k, lost in enumerate(losses)]
    plane["least"] = None
    axes = plot.plane(plane).axes[0]
    mesh = axes.collections[0]
    shades = mesh.cmap(mesh.norm(mesh.get_array().ravel()))
    for k, shade in enumerate(shades):
        a, b = luminance(shade[:3]), luminance(axes.texts[2 * k].get_color())
        assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 3


def test_bonds_have_a_line_each(plane):
    values = [[3.0, 1.0], [4.0, 2.0, 1e-20]]
    axes = plot.bond_singular_values(values).axes[0]
    lines = axes.get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), [1, 1 / 3])
    np.testing.assert_allclose(lines[1].get_ydata(), [1, 0.5])
    assert len(plot.bond_singular_values([[1.0, 0.5]] * 9).axes) == 2
    with pytest.raises(ValueError, match="bond"):
        plot.bond_singular_values([])


def test_spectrum_has_a_bar_an_order_and_one_a_coordinate(spectrum):
    left, right = plot.interaction_spectrum(spectrum).axes
    heights = [bar.get_height() for bar in left.containers[0]]
    np.testing.assert_allclose(heights, [70, 20, 5, 5])
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "2", "3", ">3"]
    assert [t.get_text() for t in right.get_yticklabels()] == ["u3", "u2", "u1", "u0"]
    figure = plot.interaction_spectrum({"one": spectrum, "two": spectrum})
    assert len(figure.axes) == 1
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["one", "two"]


def test_figures_of_results_with_tensor_trains(plane, spectrum):
    results = {
        "original": {"accuracy": 0.9}, "replaced": [], "compressed": [], "plane": plane,
        "interactions": spectrum, "bonds": {"values": [[2.0, 1.0]]},
    }  # fmt: skip
    made = plot.figures(results)
    assert set(made) == {"plane", "bond_singular_values", "interaction_spectrum"}
    for figure in made.values():
        figure.savefig(io.BytesIO(), format="svg")
    with pytest.raises(ValueError, match="at least one row"):
        plot.plane({**plane, "rows": []})
