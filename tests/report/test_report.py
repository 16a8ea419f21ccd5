"""results.json and report.html: whole, self-contained, and saying what the results say."""

import html.parser
import json
import pathlib
import re

import numpy as np
import pytest

import koopjax.plot as plot
import koopjax.report as report

RESULTS = pathlib.Path(__file__).parent / "results.json"


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())


@pytest.fixture(scope="module")
def page(results):
    return report.render(results, plot.figures(results))


class Reader(html.parser.HTMLParser):
    """Collects identifiers, references and text; checks that tags are closed in order."""

    EMPTY = frozenset({"meta", "br", "img", "use", "path", "image", "stop", "link", "rect"})

    def __init__(self):
        super().__init__()
        self.ids, self.addresses, self.text, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in {"src", "href", "xlink:href"}:
                self.addresses.append(value)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_one_file(page):
    reader = read(page)
    assert reader.addresses
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in reader.addresses)
    assert "<script" not in page
    assert "@import" not in page
    loaded = re.findall(r"url\(([^)]*)\)", page)
    assert all(address.startswith("#") for address in loaded)


def test_identifiers_are_unique_and_references_lead_somewhere(page):
    reader = read(page)
    assert len(reader.ids) == len(set(reader.ids))
    used = [a[1:] for a in reader.addresses if a.startswith("#")]
    used += [a[1:] for a in re.findall(r"url\(([^)]*)\)", page)]
    assert set(used) <= set(reader.ids)


def test_the_page_says_what_the_results_say(results, page):
    text = " ".join(" ".join(read(page).text).split())
    assert results["sentence"] in text
    for row in results["replaced"]:
        assert row["dictionary"] in text
        assert f"{row['accuracy']:.4f}" in text
    for row in results["compressed"]:
        assert row["method"] in text
        assert f"{row['ratio']:.1f}×" in text
    assert results["command"] in text
    assert results["versions"]["jax"] in text
    assert page.count("data:image/png") >= len(results["disagreements"]["examples"])


def test_every_figure_is_in_the_page_in_the_pages_colours(results, page):
    for name in plot.figures(results):
        assert f'aria-label="{name.replace("_", " ")}"' in page or name == "disagreements"
    svg = page[page.index("<svg") : page.rindex("</svg>")]
    assert "currentColor" in svg
    assert "#20252c" not in svg


def test_the_same_results_give_the_same_page(results, page):
    assert report.render(results, plot.figures(results)) == page


def test_a_page_without_figures_or_most_fields_still_reads():
    bare = {"dataset": "<b>odd & named</b>", "seed": 3, "original": {"accuracy": 0.5}}
    page = report.render(bare)
    assert "&lt;b&gt;odd &amp; named&lt;/b&gt;" in page
    assert "<svg" not in page
    assert "0.5000" in page
    read(page)


def test_json_round_trip_and_numbers_json_lacks(tmp_path):
    given = {
        "dataset": "d",
        "seed": np.int64(3),
        "original": {"accuracy": np.float32(0.5), "kl": float("inf")},
        "replaced": [{"rank": None, "values": np.arange(3)}],
        "flag": np.bool_(True),
        "path": pathlib.Path("a"),
    }
    report.write_atomically(tmp_path / "results.json", report.to_json(given))
    assert report.load(tmp_path) == {
        "dataset": "d",
        "seed": 3,
        "original": {"accuracy": 0.5, "kl": None},
        "replaced": [{"rank": None, "values": [0, 1, 2]}],
        "flag": True,
        "path": "a",
    }


def test_save_writes_both_files(results, tmp_path):
    drawn = {"rank_curve": plot.rank_curve(results)}
    paths = report.save(results, tmp_path / "new" / "folder", drawn)
    assert [p.name for p in paths] == ["results.json", "report.html"]
    assert report.load(paths[0]) == results
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["report.html", "results.json"]


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, FileNotFoundError, "got nothing there; try koopjax demo"),
        ("{", ValueError, "expected JSON"),
        ('{"dataset": 1}', ValueError, "expected the fields dataset and original"),
        ("[]", ValueError, "expected the fields"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, content, error, match):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=match):
        report.load(path)


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "results.json"
    report.write_atomically(target, "old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_versions_name_what_computes():
    assert {"koopjax", "jax", "flax", "python"} <= set(report.versions())


def test_the_page_shows_tensor_trains_where_the_results_have_them(results):
    row = {**results["replaced"][0], "degree": 2, "rank": 4, "accuracy": 0.9123, "truncation": "tt"}
    plane = {
        "rows": [row], "nulls": results["replaced"][:1], "original": {"accuracy": 0.95},
        "least": {"degree": 2, "rank": 4}, "latent": 7, "tolerance": 0.005, "sentence": "It is so.",
    }  # fmt: skip
    spectrum = {"orders": [0.6, 0.4], "beyond": 0.0, "coordinates": [], "sentence": "Pairs matter."}
    more = {**results, "plane": plane, "bonds": {"values": [[2.0, 1.0]]}, "interactions": spectrum}
    drawn = plot.figures({**more, "replaced": [], "compressed": [], "singular_values": None})
    page = report.render(more, {k: f for k, f in drawn.items() if k not in results})
    for text in ("Which degree, which tensor-train rank?", "It is so.", "Pairs matter.", "0.9123"):
        assert text in page
    for name in ("plane", "bond singular values", "interaction spectrum"):
        assert f'aria-label="{name}"' in page
    assert "tensor-train rank?" not in report.render(results, {})


def test_the_page_shows_a_contest_with_the_best_of_each_budget_marked(results):
    row = {"track": "fine-tuned", "family": "koopman", "budget": "10x", "std": 0.001,
           "seconds": 3.0, "lost": 0.0123, "ratio": 10.25, "stored_bytes": 2048.5,
           "parameters": 400.0}  # fmt: skip
    empty = dict.fromkeys(("accuracy", "std", "lost", "ratio", "stored_bytes", "parameters"))
    contest = {
        "dataset": "mnist", "sentence": "One <kept> most.",
        "originals": {"0": {"accuracy": 0.98}, "1": {"accuracy": 0.96}},
        "summary": [
            {**row, "method": "koopman", "accuracy": 0.9512},
            {**row, "method": "fisher", "accuracy": 0.9623},
            {**row, "method": "tiny", "budget": "200x", **empty},
        ],
    }  # fmt: skip
    more = {**results, "pareto": contest}
    page = report.render(more, {"pareto": plot.pareto(contest)})
    read(page)
    for text in ("One &lt;kept&gt; most.", "0.9512 ± 0.0010", "1.23", "10.2×", "2.0 KiB", "0.9700"):
        assert text in page
    assert 'aria-label="pareto"' in page
    assert 'aria-label="budget curve"' not in page
    rows = re.findall(r'<tr class="(.*?)"><td>(koopman|fisher|tiny)</td>', page)
    assert rows == [("", "koopman"), ("found", "fisher"), ("null", "tiny")]
    assert "One-shot compression, no labels" not in page
