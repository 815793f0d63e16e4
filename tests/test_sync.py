"What is kept in git agrees: package and notebooks, clean notebooks, README and index"

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from readme import write_readme

root = Path(__file__).resolve().parent.parent
notebooks = [*sorted(root.glob("nbs/**/[0-9][0-9]_*.ipynb")), root / "index.ipynb"]
each_notebook = pytest.mark.parametrize("notebook", notebooks, ids=lambda p: p.stem)


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of settings, notebooks and `__init__.py`, in which nbdev's commands may write."
    folder = tmp_path_factory.mktemp("copy")
    init = root / "dreamer4_nb/__init__.py"
    for file in (root / "settings.ini", root / "pyproject.toml", init, *notebooks):
        to = folder / file.relative_to(root)
        to.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(file, to)
    return folder


def nbdev(command, folder):
    program = Path(sysconfig.get_path("scripts")) / command
    result = subprocess.run([program], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def modules(folder):
    package = folder / "dreamer4_nb"
    return {
        str(path.relative_to(package)): path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
    }


def test_package_is_exported(copy):
    nbdev("nbdev_export", copy)
    committed = modules(root)
    exported = modules(copy)
    assert sorted(committed) == sorted(exported), "run `make export`"
    differing = [name for name in committed if committed[name] != exported[name]]
    assert differing == [], "modules differ from their notebooks: run `make export`"


def test_notebooks_are_clean(copy):
    nbdev("nbdev_clean", copy)
    unclean = [
        str(path)
        for path in notebooks
        if path.read_bytes() != (copy / path.relative_to(root)).read_bytes()
    ]
    assert unclean == [], "not clean: run `make export`"


@each_notebook
def test_notebook_is_small(notebook):
    assert notebook.stat().st_size < 400_000, "use fewer or smaller figures"


@each_notebook
def test_no_saved_error(notebook):
    kinds = [
        output["output_type"] for cell in code_cells(notebook) for output in cell["outputs"]
    ]
    assert "error" not in kinds


@each_notebook
def test_no_path_of_a_machine(notebook):
    pattern = r"(?<![\w.])/(?:work|root|home|Users)/[\w./-]+"
    assert re.findall(pattern, notebook.read_text(encoding="utf-8")) == []


def test_readme_is_the_index(tmp_path):
    different = []
    for name in write_readme(tmp_path):
        committed = root / name
        if not committed.exists() or committed.read_bytes() != (tmp_path / name).read_bytes():
            different.append(name)
    assert different == [], "not what the index says: run `make readme`"
