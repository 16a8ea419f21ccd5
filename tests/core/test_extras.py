"""What only some users need: a clear word where it is not installed."""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx

from koopjax import cli, data, models, plot, report
from koopjax._extras import MissingExtra, needed


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("sklearn", "data", lambda: data.load("digits")),
        ("matplotlib", "report", lambda: importlib.reload(plot)),
        ("click", "cli", lambda: importlib.reload(cli)),
        ("jinja2", "report", lambda: report.render({})),
        ("orbax", "checkpoints", lambda: train(checkpoint="kept")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, package, extra, call):
    monkeypatch.chdir(tmp_path)
    genuine = importlib.import_module

    def hidden(module):
        if module.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return genuine(module)

    # The name is hidden, not the module: NumPy and its friends do not stand a second import.
    monkeypatch.setattr("koopjax._extras.importlib.import_module", hidden)
    with pytest.raises(MissingExtra, match=rf'{package}.*pip install "koopjax\[{extra}\]"'):
        call()


def train(**options):
    model = models.MLP((2, 2), rngs=nnx.Rngs(0))
    x, y = np.ones((4, 2), np.float32), np.zeros(4, int)
    models.train(model, x, y, key=jax.random.key(0), epochs=1, **options)


def test_an_error_inside_a_package_stays_what_it_is(monkeypatch, tmp_path):
    (tmp_path / "half_installed.py").write_text("import what_it_needs\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        needed("half_installed", "data")
