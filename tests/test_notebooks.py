"Every notebook runs from top to bottom, in its own folder, with its slow cells left out unless --full is given"

from pathlib import Path

import matplotlib.pyplot
import pytest
from nbdev.test import test_nb as run_notebook

root = Path(__file__).resolve().parent.parent
notebooks = sorted(root.glob("nbs/*.ipynb")) + sorted(root.glob("index.ipynb"))


@pytest.mark.parametrize("notebook", notebooks, ids=lambda p: p.stem)
def test_notebook(notebook, full, monkeypatch):
    monkeypatch.setenv(
        "IN_TEST", "1"
    )  # `run_notebook` sets it and leaves it; other tests must not inherit it
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
