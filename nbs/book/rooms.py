"Draw the rooms of the package and the imports between them: python nbs/book/rooms.py"

import ast
import re
import tomllib
from pathlib import Path

from jinja2 import Template

root = Path(__file__).resolve().parents[2]
PACKAGE = "dreamer4_nb"
BEGIN = "<!-- rooms: written by nbs/book/rooms.py from nbs/book/rooms.toml -->"
END = "<!-- end of rooms -->"
PAGES = ("nbs/book/where_to_change_what.md",)
WIDTH = 620
ROW_HEIGHT = 62
BOX_WIDTH = 112
BOX_HEIGHT = 30

SVG = Template(
    """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" \
width="{{ width }}" height="{{ height }}" font-family="sans-serif" font-size="14">
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" \
markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#7a8894"/></marker></defs>
<rect width="{{ width }}" height="{{ height }}" fill="white"/>
{%- for a in arrows %}
<path d="M{{ a.x1 }},{{ a.y1 }} C{{ a.x1 }},{{ a.ym }} {{ a.x2 }},{{ a.ym }} \
{{ a.x2 }},{{ a.y2 }}" fill="none" stroke="#7a8894" stroke-width="1.4" marker-end="url(#tip)">\
<title>{{ a.source }} imports {{ a.target }}</title></path>
{%- endfor %}
{%- for b in boxes %}
<rect x="{{ b.left }}" y="{{ b.top }}" width="{{ b.width }}" height="{{ b.height }}" rx="5" \
fill="{{ '#e8f0f7' if b.is_folder else '#f4f4f0' }}" stroke="#54687a"/>
<text x="{{ b.x }}" y="{{ b.y }}" text-anchor="middle" fill="#1d2b36">{{ b.name }}</text>
{%- endfor %}
</svg>
"""
)


def read_rows():
    "Rows of the table from the top down: a dictionary of room and purpose each."
    return tomllib.loads((root / "nbs/book/rooms.toml").read_text(encoding="utf-8"))["row"]


def module_name(path):
    "Dotted name inside the package: 'models.transformer'."
    parts = path.relative_to(root / PACKAGE).with_suffix("").parts
    return ".".join(parts)


def room_of(module):
    return module.split(".")[0]


def absolute_import(node, module):
    "Names inside the package that an import statement names, or nothing."
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        return [n.removeprefix(f"{PACKAGE}.") for n in names if n.startswith(f"{PACKAGE}.")]
    base = (node.module or "").split(".") if node.module else []
    if node.level:
        folder = [PACKAGE, *module.split(".")[:-1]]
        base = folder[: len(folder) - node.level + 1] + base
    if not base or base[0] != PACKAGE:
        return []
    if (root / PACKAGE / Path(*base[1:])).is_dir():
        return [".".join([*base[1:], alias.name]) for alias in node.names]
    return [".".join(base[1:])]


def type_checking_nodes(tree):
    "Import statements that only a type checker reads."
    nodes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes |= set(ast.walk(node))
    return nodes


def read_imports():
    "Imports of one module by another: (importer, imported, whether in a function)."
    modules = {
        module_name(path): path
        for path in sorted((root / PACKAGE).rglob("*.py"))
        if not path.name.startswith("_")
    }
    imports = set()
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        only_types = type_checking_nodes(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom) or node in only_types:
                continue
            for target in absolute_import(node, module):
                imports.add((module, target, node not in tree.body))
    return sorted(imports)


def room_imports():
    "Pairs of rooms of which the first imports from the second."
    pairs = {(room_of(a), room_of(b)) for a, b, _ in read_imports()}
    return sorted(p for p in pairs if p[0] != p[1])


def without_shortcuts(pairs):
    "Leave out pairs that follow from longer ways."

    def reachable(start, skip):
        reached = set()
        waiting = [b for a, b in pairs if a == start and (a, b) != skip]
        while waiting:
            room = waiting.pop()
            if room not in reached:
                reached.add(room)
                waiting += [b for a, b in pairs if a == room]
        return reached

    return [(a, b) for a, b in pairs if b not in reachable(a, (a, b))]


def draw():
    "The drawing as SVG: an arrow points at what a room imports."
    rows = read_rows()
    places = {}
    for i, row in enumerate(rows):
        alone = (0.36, 0.64)[i % 2]  # in turn left and right, so that arrows pass beside boxes
        columns = [alone] if len(row) == 1 else [0.22, 0.78]
        for column, name in zip(columns, row, strict=True):
            x = WIDTH * column
            places[name] = (round(x), round(24 + i * ROW_HEIGHT))
    boxes = []
    for name, (x, top) in places.items():
        is_folder = (root / PACKAGE / name).is_dir()
        boxes.append(
            dict(
                name=f"{name}/" if is_folder else name,
                is_folder=is_folder,
                x=x,
                y=top + 20,
                left=x - BOX_WIDTH // 2,
                top=top,
                width=BOX_WIDTH,
                height=BOX_HEIGHT,
            )
        )
    arrows = []
    for source, target in without_shortcuts(room_imports()):
        if source not in places or target not in places:
            continue
        x1, y1 = places[source]
        x2, y2 = places[target]
        start = y1 + BOX_HEIGHT
        arrows.append(
            dict(
                source=source,
                target=target,
                x1=x1,
                y1=start,
                x2=x2,
                y2=y2 - 1,
                ym=round((start + y2) / 2),
            )
        )
    height = 24 + len(rows) * ROW_HEIGHT
    return SVG.render(width=WIDTH, height=height, boxes=boxes, arrows=arrows)


def modules_of(room):
    "Modules of a folder, in the order of its notebooks."
    names = [p.stem for p in sorted((root / "nbs" / room).glob("[0-9][0-9]_*.ipynb"))]
    names = [n.split("_", 1)[1] for n in names]
    return [n for n in names if (root / PACKAGE / room / f"{n}.py").exists()]


def table():
    "The rooms as a Markdown table."
    lines = ["| room | what is in it | modules |", "|---|---|---|"]
    for row in read_rows():
        for room, purpose in row.items():
            modules = ", ".join(f"`{m}`" for m in modules_of(room))
            lines.append(f"| `{room}` | {purpose} | {modules} |")
    return "\n".join(lines)


def with_table(text):
    "The page's text with today's table between its two marks."
    block = f"{BEGIN}\n{table()}\n{END}"
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    return pattern.sub(lambda _: block, text)


def files():
    "What is written: path and text."
    out = {root / "nbs/images/rooms.svg": draw()}
    for page in PAGES:
        path = root / page
        out[path] = with_table(path.read_text(encoding="utf-8"))
    return out


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
