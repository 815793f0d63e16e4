"Nothing is ever unpickled: a file from elsewhere must not be able to run code"

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
CODE = sorted((ROOT / "dreamer4_nb").rglob("*.py"))
NOTEBOOKS = [*sorted((ROOT / "nbs").rglob("*.ipynb")), ROOT / "index.ipynb"]
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]


def notebook_code(path):
    "The code cells of a notebook, without commands for the shell and for Jupyter"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return re.sub(r"^(\s*)[%!].*", r"\1pass", "\n".join(code), flags=re.M)


def is_offence(node):
    "Whether this imports a pickler, or loads in a way that may unpickle"
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] in PICKLERS for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in PICKLERS
    if isinstance(node, ast.Call):
        options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        is_torch_load = ast.unparse(node.func) == "torch.load"
        may_unpickle = is_torch_load and options.get("weights_only") is not True
        return may_unpickle or options.get("allow_pickle") is True
    return False


def offences(code):
    nodes = ast.walk(ast.parse(code))
    return [f"line {n.lineno}: {ast.unparse(n)}" for n in nodes if is_offence(n)]


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_module_unpickles_nothing(path):
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebook_unpickles_nothing(path):
    assert offences(notebook_code(path)) == []


def test_all_files_are_read():
    assert len(CODE) > 40
    assert len(NOTEBOOKS) > 40


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_offences_are_noticed(code):
    assert len(offences(code)) == 1


def test_safe_loads_pass():
    assert offences("torch.load(f, weights_only=True)") == []
    assert offences("np.load(f, allow_pickle=False)") == []
