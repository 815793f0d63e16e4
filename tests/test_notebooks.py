"Every notebook runs from top to bottom in its own folder; slow cells only with --full"

from pathlib import Path

import matplotlib.pyplot
import pytest
from nbdev.test import test_nb as run_notebook

root = Path(__file__).resolve().parent.parent
notebooks = [*sorted(root.glob("nbs/**/[0-9][0-9]_*.ipynb")), root / "index.ipynb"]


def name_of(path):
    return str(path.relative_to(root).with_suffix("")).removeprefix("nbs/")


@pytest.mark.parametrize("notebook", notebooks, ids=name_of)
def test_notebook(notebook, full, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")  # `run_notebook` sets it and leaves it
    backend = matplotlib.get_backend()
    passed, _ = run_notebook(
        notebook,
        skip_flags=["slow", "notest"],
        force_flags=["slow"] if full else [],
        basepath=root,
    )
    matplotlib.pyplot.close("all")
    matplotlib.use(backend)
    assert passed, f"{notebook.name}: the cell and its error are above"
