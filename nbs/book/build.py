"Build the site: python nbs/book/build.py [FOLDER]. Notebooks become pages as they were saved; none is run."

import ast
import base64
import importlib
import inspect
import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

root = Path(__file__).resolve().parents[2]
here = root / "nbs/book"
PARTS = [
    "Ground",
    "World model",
    "Agent",
    "Review",
    "Practice",
]  # by the first digit of a chapter's name
PAGES = dict(
    Contributors=["where_to_change_what"],
    Practice=["your_own_recordings", "your_own_world", "model_card"],
    Reference=["glossary"],
)
DRAWING = "\n```{figure} nbs/figures/25_drawing-1.png\n:alt: tokenizer, dynamics and heads with the shapes of their tensors\n\nThe whole, from [chapter 25](nbs/25_drawing.ipynb).\n```\n"
WORDS = re.compile(
    r"(\$\$.*?\$\$|```.*?```|`[^`]*`|\$[^$\n]+\$|\[[^\]]*\]\([^)]*\)|^#.*?$)", re.S | re.M
)  # in these nothing becomes a link

chapters = lambda: sorted((root / "nbs").glob("[0-9][0-9]_*.ipynb"))
number = lambda path: path.stem[:2]
source = lambda cell: "".join(cell["source"])


def directives(code):
    return dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", code, re.M))


def numbered(text, word, to):
    "Links in place of the numbers behind a word: 'equations 10 and 11', 'chapters 31 to 35'."
    numbers = re.compile(rf"\b({word}s?) (\d+(?:(?:, and |, | and | to | or )\d+)*)\b", re.I)
    link = lambda m: (
        m[1]
        + " "
        + re.sub(r"\d+", lambda n: f"[{n[0]}]({to(n[0])})" if to(n[0]) else n[0], m[2])
    )
    return "".join(
        o if i % 2 else numbers.sub(link, o) for i, o in enumerate(WORDS.split(text))
    )


def cross_references(text, folder):
    "Chapters and the paper's equations, where a text names them, as links; targets where an equation is set."
    to = {root: "nbs/", here: "../", root / "api": "../nbs/"}.get(folder, "")
    files = {number(o): to + o.name for o in chapters()}
    text = numbered(
        numbered(text, "chapter", files.get),
        "equation",
        lambda n: f"#equation-{n}" if n in equations() else None,
    )
    text = re.sub(
        r"(?<=[^\n])\n(?=\$\$)", "\n\n", text
    )  # a formula of its own needs an empty line before it
    return re.sub(
        r"^(\$\$(?:(?!\$\$).)*\\tag\{(\d+)\}(?:(?!\$\$).)*\$\$)",
        lambda m: f"\n(equation-{m[2]})=\n{m[1]}",
        text,
        flags=re.S | re.M,
    )


def equations(found={}):
    "Numbers of the paper's equations that some chapter sets, and where."
    if not found:
        for o in chapters():
            for c in json.loads(o.read_text(encoding="utf-8"))["cells"]:
                if c["cell_type"] == "markdown":
                    for n in re.findall(r"\\tag\{(\d+)\}", source(c)):
                        if n in found:
                            raise SystemExit(
                                f"{o.name}: equation {n} is also set in {found[n]}"
                            )
                        found[n] = o.name
    return found


def figure(path, caption, n, width):
    alt = re.sub(r"[`$\\]", "", caption)
    return f"```{{figure}} {path}\n:name: figure-{n.replace('.', '-')}\n:alt: {alt}\n:width: {width}px\n:align: left\n\n**Figure {n}.** {caption}\n```"


def page(path, write):
    "A notebook as the book shows it: without hidden cells and directives, figures with numbers and captions, tables as text."
    nb = json.loads(path.read_text(encoding="utf-8"))
    n, out, heading, count, folder = (
        number(path) if path.stem != "index" else "0",
        [],
        "",
        0,
        path.parent,
    )
    md = lambda text: out.append(
        dict(
            cell_type="markdown",
            id=f"text-{len(out)}",
            metadata={},
            source=cross_references(text, folder),
        )
    )
    width = lambda o: round(
        1.3 * o["metadata"].get("image/png", {}).get("width", 400)
    )  # notebooks hold figures at twice the pixels
    for c in nb["cells"]:
        text = source(c)
        if c["cell_type"] == "markdown":
            if heads := re.findall(r"^#+ (.*)", text, re.M):
                heading = heads[-1]
            md(re.sub(r"^# ", f"# {n}. ", text) if n != "0" else text)
            continue
        marks = directives(text)
        if "hide" in marks or "default_exp" in marks:
            continue
        code = re.sub(r"^#\|.*\n?", "", text, flags=re.M).strip("\n")
        keep, after = [], []
        for o in c["outputs"]:
            data = o.get("data", {})
            if "image/png" in data:
                count += 1
                name = f"{path.stem}-{count}.png"
                write(folder / "figures" / name, base64.b64decode("".join(data["image/png"])))
                after.append(
                    figure(
                        f"figures/{name}",
                        marks.get("fig-cap") or heading,
                        f"{int(n)}.{count}" if path.parent != root else f"{count}",
                        width(o),
                    )
                )
            elif "text/markdown" in data:
                after.append("".join(data["text/markdown"]))
            else:
                keep.append(o)
        if code and ("hide_input" not in marks or keep):
            tags = (
                ["remove-input"]
                if "hide_input" in marks
                else ["hide-cell"]
                if "code-fold" in marks
                else []
            )  # the solution of an exercise
            out.append(c | dict(source=code, outputs=keep, metadata=dict(tags=tags)))
        for o in after:
            md(o)
    if modules().get(path.name):
        md(f"*The module: [`{modules()[path.name]}`](../api/{modules()[path.name]}.md).*")
    return json.dumps(dict(nb, cells=out))


def modules():
    "Module by notebook."
    get = lambda o: re.search(r"#\| default_exp (\w+)", o.read_text(encoding="utf-8"))
    return {o.name: m[1] for o in chapters() if (m := get(o))}


def signature(obj):
    try:
        return str(inspect.signature(obj)).replace("'", "")
    except (ValueError, TypeError):
        return "()"


def entry(name, obj, level):
    "Name, docstring and table of parameters of a function or class."
    from nbdev.showdoc import DocmentTbl

    obj = getattr(obj, "__wrapped__", obj)
    doc = (
        inspect.getdoc(obj)
        if obj.__doc__ and not obj.__doc__.startswith(f"{obj.__name__}(")
        else ""
    )
    try:
        table = DocmentTbl(obj)._repr_markdown_().replace("| NoneType |", "|  |")
    except Exception:
        table = ""  # no source, or nothing to say of it
    kind = "class " if inspect.isclass(obj) else ""
    return (
        f"{'#' * level} {kind}`{name}`\n\n{doc}\n\n"
        + (table or f"`{obj.__name__}{signature(obj)}`")
        + "\n"
    )


def api(notebook, name):
    "The page of a module: all it exports, methods below their class, in the order of the source."
    sys.path.insert(0, str(root))
    module = importlib.import_module(f"dreamer4_nb.{name}")
    out = [
        f"# `{name}`\n\n{inspect.getdoc(module)}\n\nChapter: [{number(Path(notebook))}](../nbs/{notebook})\n"
    ]
    for export in module.__all__:
        obj = getattr(module, export)
        if not (inspect.isclass(obj) or inspect.isfunction(obj)):
            continue
        out.append(entry(export, obj, 2))
        own = vars(obj) if inspect.isclass(obj) else {}
        out += [
            entry(f"{export}.{k}", v, 3)
            for k, v in own.items()
            if not k.startswith("_") and inspect.isfunction(v) and v.__doc__
        ]
    return "\n".join(out)


def contents():
    "Title page: what the parts hold, chapter by chapter."
    out = []
    for i, part in enumerate(PARTS):
        out.append(f"\n## {part}\n")
        for o in chapters():
            if not number(o).startswith(str(i)):
                continue
            cells = [
                source(c)
                for c in json.loads(o.read_text(encoding="utf-8"))["cells"]
                if c["cell_type"] == "markdown"
            ]
            said = re.search(r"^> (.*)", "\n".join(cells), re.M)
            out.append(
                f"**{number(o)}** [{re.search('^# (.*)', cells[0], re.M)[1]}](nbs/{o.name})"
                + (f"<br>{said[1]}" if said else "")
                + "\n"
            )
    return "\n".join(out)


def toc():
    entry = lambda o: f"  - file: {o}"
    lines = [
        "format: jb-book",
        "root: index",
        "parts:",
        "- caption: Overview",
        "  chapters:",
        entry("overview"),
        "    title: Results and use",
    ]
    for i, part in enumerate(PARTS):
        lines += [
            f"- caption: {part}",
            "  chapters:",
            *(entry(f"nbs/{o.stem}") for o in chapters() if number(o).startswith(str(i))),
        ]
        lines += [entry(f"nbs/book/{o}") for o in PAGES.get(part, [])]
    lines += [
        "- caption: Reference",
        "  chapters:",
        *(entry(f"nbs/book/{o}") for o in PAGES["Reference"] + PAGES["Contributors"]),
    ]
    lines += [
        entry("contributing"),
        entry("api"),
        "    sections:",
        *(f"    - file: api/{o}" for o in modules().values()),
        entry("changes"),
    ]
    return "\n".join(lines) + "\n"


def stage(target):
    "Write the sources of the site; what has not changed is left alone, so that a second build is quick."
    written = set()

    def write(path, content):
        path = target / (path.relative_to(root) if path.is_absolute() else path)
        content = content.encode() if isinstance(content, str) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        written.add(path)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)

    write(Path("overview.ipynb"), page(root / "index.ipynb", write))
    for o in chapters():
        write(o, page(o, write))
    for o in here.glob("*.md"):
        write(o, cross_references(o.read_text(encoding="utf-8"), here))
    title = target / "nbs/book/title.md"
    written.discard(title)
    write(Path("index.md"), title.read_text(encoding="utf-8") + DRAWING + contents())
    title.unlink()
    write(Path("contributing.md"), (root / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    write(Path("changes.md"), (root / "CHANGELOG.md").read_text(encoding="utf-8"))
    for notebook, name in modules().items():
        write(Path(f"api/{name}.md"), cross_references(api(notebook, name), root / "api"))
    write(
        Path("api.md"),
        "# The package\n\nA page for each module, written from the comments beside its parameters.\n\n| module | |\n|---|---|\n"
        + "\n".join(
            f"| [`{o}`](api/{o}.md) | {ast.get_docstring(ast.parse((root / 'dreamer4_nb' / f'{o}.py').read_text(encoding='utf-8')))} |"
            for o in modules().values()
        )
        + "\n",
    )
    write(Path("_config.yml"), (here / "_config.yml").read_text(encoding="utf-8"))
    write(Path("_toc.yml"), toc())
    write(Path("_static/book.css"), (here / "book.css").read_text(encoding="utf-8"))
    for o in target.rglob("*"):
        if o.is_file() and o not in written:
            o.unlink()


def build(
    out=root / "_book",  # folder
):  # folder of the pages
    "Stage, and let jupyter-book write the pages."
    out = Path(out).resolve()
    stage(out / "source")
    command = [
        Path(sysconfig.get_path("scripts")) / "jupyter-book",
        "build",
        "-q",
        str(out / "source"),
        "--path-output",
        str(out),
    ]
    r = subprocess.run(command, capture_output=True, text=True)
    if r.stderr.strip():
        print(r.stderr.strip())
    if r.returncode:
        raise SystemExit(r.stdout + "\nthe book was not built")
    (out / "index.html").write_text(
        '<meta http-equiv="refresh" content="0; url=_build/html/index.html">'
    )
    return out / "_build/html"


if __name__ == "__main__":
    print(f"== book: open {build(*sys.argv[1:2]).parents[1] / 'index.html'}")
