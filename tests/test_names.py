"Names are the field's: none of those that the book once had for itself is left"

import ast
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
RETIRED = set(
    """leash trunk trunks novelty_error extreme_tenths matrix_rate levers corrupt Levels
    signal_index readouts rotary explained slow clip Windows goes_on follow descend everyones
    said told held mend refuse signed intact take glimpse box watch outcome ahead looks
    share shares clone clones clone_policy clone_data sharpened fill made found seen""".split()
)
modules = sorted((root / "dreamer4_nb").rglob("*.py"))
sources = [
    *modules,
    *sorted((root / "nbs").rglob("[0-9][0-9]_*.ipynb")),
    *sorted((root / "nbs/book").glob("*.py")),
    *sorted((root / "tests").glob("*.py")),
]
# keys of results files are data: strings are not looked at


def code_of(path):
    "The Python of a file; of a notebook, that of its cells without their magics."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"^[%!].*$", "", code, flags=re.M)


def identifiers(tree):
    "Names that this code gives to something."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("path", sources, ids=lambda p: str(p.relative_to(root)))
def test_names_are_the_fields(path):
    tree = ast.parse(code_of(path))
    assert sorted(set(identifiers(tree)) & RETIRED) == []


@pytest.mark.parametrize("path", modules, ids=lambda p: str(p.relative_to(root)))
def test_messages_have_hints(path):
    text = path.read_text(encoding="utf-8").replace('"no leash"', "")  # a results file's key
    assert re.findall(r"(?<![\"])\b(?:mend|mends|leash)\b", text) == []


def public_names(statement):
    "What a statement of a module makes that others may import."
    names = []
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        names = [statement.name]
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = getattr(statement, "targets", None) or [statement.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if name[0] != "_"]


def test_no_two_public_things_of_one_name():
    names = {}
    for path in modules:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            for name in public_names(node):
                names.setdefault(name, []).append(str(path.relative_to(root)))
    assert {name: where for name, where in names.items() if len(where) > 1} == {}
