"Rooms import downwards only, by the table that the page `Where to change what` shows"

import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / "nbs/book"))

import rooms  # noqa: E402


def ranks():
    "Row of each room, 0 at the bottom."
    rows = rooms.read_rows()[::-1]
    return {room: i for i, row in enumerate(rows) for room in row}


def test_every_room_is_in_the_table():
    package = root / rooms.PACKAGE
    there = {p.parent.name for p in package.glob("*/__init__.py")}
    there |= {p.stem for p in package.glob("[!_]*.py")}
    assert there == set(ranks())


def test_rooms_import_downwards():
    rank = ranks()
    wrong = []
    for importer, imported, _ in rooms.read_imports():
        above, below = rooms.room_of(importer), rooms.room_of(imported)
        if above != below and rank[above] <= rank[below]:
            wrong.append(f"{importer} imports {imported}")
    assert wrong == []


def test_no_circle_inside_a_room():
    imports = {}
    for importer, imported, _ in rooms.read_imports():
        imports.setdefault(importer, set()).add(imported)

    def reach(module):
        reached = set()
        waiting = [module]
        while waiting:
            for name in imports.get(waiting.pop(), ()):
                if name not in reached:
                    reached.add(name)
                    waiting.append(name)
        return reached

    assert [module for module in imports if module in reach(module)] == []


def test_no_import_of_the_package_inside_a_function():
    "Only the command line and the face wait with imports, so that they are light."
    late = [(a, b) for a, b, in_function in rooms.read_imports() if in_function]
    assert [(a, b) for a, b in late if rooms.room_of(a) not in ("cli", "face")] == []


@pytest.mark.parametrize("path", rooms.files(), ids=lambda p: p.name)
def test_drawing_and_table_are_todays(path):
    text = rooms.files()[path]
    assert path.read_text(encoding="utf-8") == text, "run `make export`"
