"What is kept in git agrees: notebooks with package, notebooks with their clean form, README with index"

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from readme import write_readme

root = Path(__file__).resolve().parent.parent
notebooks = sorted(root.glob("nbs/*.ipynb")) + sorted(root.glob("index.ipynb"))
cells = lambda nb: [
    o for o in json.loads(nb.read_text(encoding="utf-8"))["cells"] if o["cell_type"] == "code"
]
each_notebook = pytest.mark.parametrize("notebook", notebooks, ids=lambda p: p.stem)


@pytest.fixture
def copy(tmp_path):
    "A copy of the settings, the notebooks and the package's `__init__.py`, in which nbdev's commands may write"
    for f in (
        root / "settings.ini",
        root / "pyproject.toml",
        root / "dreamer4_nb/__init__.py",
        *notebooks,
    ):
        to = tmp_path / f.relative_to(root)
        to.parent.mkdir(exist_ok=True)
        shutil.copy(f, to)
    return tmp_path


def nbdev(command, folder):
    r = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / command],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr


def contents(folder):
    return {
        o.name: o.read_text(encoding="utf-8") for o in (folder / "dreamer4_nb").glob("*.py")
    }


def test_package_is_exported(copy):
    nbdev("nbdev_export", copy)
    old, new = contents(root), contents(copy)
    assert sorted(old) == sorted(new), "modules and notebooks do not match: run `make export`"
    assert [o for o in old if old[o] != new[o]] == [], (
        "modules differ from their notebooks: run `make export`"
    )


def test_notebooks_are_clean(copy):
    nbdev("nbdev_clean", copy)
    unclean = [
        o.name
        for o in notebooks
        if o.read_bytes() != (copy / o.relative_to(root)).read_bytes()
    ]
    assert unclean == [], "not clean: run `make export`"


@each_notebook
def test_notebook_is_small(notebook):
    assert notebook.stat().st_size < 400_000, "use fewer or smaller figures"


@each_notebook
def test_no_saved_error(notebook):
    kinds = [o["output_type"] for c in cells(notebook) for o in c["outputs"]]
    assert "error" not in kinds


@each_notebook
def test_no_path_of_a_machine(notebook):
    found = re.findall(
        r"(?<![\w.])/(?:work|root|home|Users)/[\w./-]+", notebook.read_text(encoding="utf-8")
    )
    assert found == []


@pytest.mark.skipif(not (root / "index.ipynb").exists(), reason="no index.ipynb")
def test_readme_is_the_index(tmp_path):
    old = [
        o
        for o in write_readme(tmp_path)
        if not (root / o).exists() or (root / o).read_bytes() != (tmp_path / o).read_bytes()
    ]
    assert old == [], "not what the index says: run `make readme`"
