"Nothing is ever unpickled: a recording or a checkpoint from elsewhere must not be able to run code"

import ast
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
picklers = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}


def sources():
    for f in sorted((root / "dreamer4_nb").glob("*.py")):
        yield f.name, f.read_text(encoding="utf-8")
    for f in sorted(root.glob("nbs/*.ipynb")) + sorted(root.glob("index.ipynb")):
        code = [
            c["source"]
            for c in json.loads(f.read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == "code"
        ]
        yield (
            f.name,
            "\n".join(
                re.sub(r"^(\s*)[%!].*", r"\1pass", "".join(o), flags=re.M) for o in code
            ),
        )


def offences(code):
    "Each line that imports a pickler, or loads in a way that may unpickle"
    for o in ast.walk(ast.parse(code)):
        if isinstance(o, ast.Import):
            found = {a.name.split(".")[0] for a in o.names} & picklers
        elif isinstance(o, ast.ImportFrom):
            found = {(o.module or "").split(".")[0]} & picklers
        elif isinstance(o, ast.Call):
            given = {k.arg: getattr(k.value, "value", None) for k in o.keywords}
            torch_load = (
                ast.unparse(o.func) == "torch.load" and given.get("weights_only") is not True
            )
            found = torch_load or given.get("allow_pickle") is True
        else:
            continue
        if found:
            yield f"line {o.lineno}: {ast.unparse(o)}"


@pytest.mark.parametrize("name, code", sources(), ids=lambda o: o if len(o) < 60 else "")
def test_nothing_unpickles(name, code):
    assert list(offences(code)) == []


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
def test_offences_are_seen(code):
    assert len(list(offences(code))) == 1


def test_safe_loads_pass():
    assert (
        list(offences("torch.load(f, weights_only=True); np.load(f, allow_pickle=False)"))
        == []
    )
