"""Build the site: python nbs/book/build.py [FOLDER].

Notebooks become pages as they were saved; none is run. `_toc.yml` beside this file gives the
reading order.
"""

import ast
import base64
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import yaml

root = Path(__file__).resolve().parents[2]
here = root / "nbs/book"
sys.path.insert(0, str(here))

import rooms  # noqa: E402

DRAWING = """
```{figure} nbs/figures/%s-1.png
:alt: tokenizer, dynamics and heads with the shapes of their tensors

The whole, from [%s](%s).
```
"""
# in these nothing becomes a link
OPAQUE = re.compile(
    r"(\$\$.*?\$\$|```.*?```|`[^`]*`|\$[^$\n]+\$|\[[^\]]*\]\([^)]*\)|^#.*?$)", re.S | re.M
)


def source(cell):
    return "".join(cell["source"])


def read_cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@cache
def read_toc():
    return yaml.safe_load((here / "_toc.yml").read_text(encoding="utf-8"))


def chapters_of(part):
    "Notebooks of one part of the table of contents, in order."
    paths = [root / f"{entry['file']}.ipynb" for entry in part["chapters"]]
    return [p for p in paths if p.exists()]


@cache
def chapters():
    "All notebooks of the book in reading order."
    return [path for part in read_toc()["parts"] for path in chapters_of(part)]


def number(path):
    "Place of a chapter in the reading order, from 1."
    return chapters().index(path) + 1


def title(path):
    text = "\n".join(source(c) for c in read_cells(path) if c["cell_type"] == "markdown")
    return re.search(r"^# (.*)", text, re.M)[1]


def summary(path):
    "The line under the title, or nothing."
    text = "\n".join(source(c) for c in read_cells(path) if c["cell_type"] == "markdown")
    line = re.search(r"^> (.*)", text, re.M)
    return line[1] if line else ""


def figure_stem(path):
    "Beginning of the file names of a notebook's figures."
    return "_".join(path.relative_to(root).with_suffix("").parts).removeprefix("nbs_")


def directives(code):
    return dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", code, re.M))


def numbered(text, word, link_to):
    "Links in place of the numbers behind a word: 'equations 10 and 11'."
    numbers = re.compile(rf"\b({word}s?) (\d+(?:(?:, and |, | and | to | or )\d+)*)\b", re.I)

    def link(match):
        target = link_to(match[0])
        return f"[{match[0]}]({target})" if target else match[0]

    def replace(match):
        return match[1] + " " + re.sub(r"\d+", link, match[2])

    parts = OPAQUE.split(text)
    return "".join(p if i % 2 else numbers.sub(replace, p) for i, p in enumerate(parts))


@cache
def equations():
    "Numbers of the paper's equations that some chapter sets, and where."
    places = {}
    for path in chapters():
        for cell in read_cells(path):
            if cell["cell_type"] != "markdown":
                continue
            for n in re.findall(r"\\tag\{(\d+)\}", source(cell)):
                if n in places:
                    raise SystemExit(f"{path.name}: equation {n} is also set in {places[n]}")
                places[n] = path.name
    return places


def cross_references(text):
    "The paper's equations, where a text names them, as links; targets where one is set."
    text = numbered(text, "equation", lambda n: f"#equation-{n}" if n in equations() else None)
    text = re.sub(
        r"(?<=[^\n])\n(?=\$\$)", "\n\n", text
    )  # a formula needs an empty line before
    formula = r"^(\$\$(?:(?!\$\$).)*\\tag\{(\d+)\}(?:(?!\$\$).)*\$\$)"
    return re.sub(formula, lambda m: f"\n(equation-{m[2]})=\n{m[1]}", text, flags=re.S | re.M)


def figure(path, caption, label, width):
    alt = re.sub(r"[`$\\]", "", caption)
    return (
        f"```{{figure}} {path}\n:name: figure-{label.replace('.', '-')}\n:alt: {alt}\n"
        f":width: {width}px\n:align: left\n\n**Figure {label}.** {caption}\n```"
    )


def figure_width(output):
    "Pixels on the page; notebooks hold figures at twice the pixels."
    return round(1.3 * output["metadata"].get("image/png", {}).get("width", 400))


class PageWriter:
    "Turns one notebook into the page that the book shows."

    def __init__(self, path, write):
        self.path = path
        self.write = write
        self.is_overview = path.stem == "index"
        self.label = "0" if self.is_overview else str(number(path))
        self.cells = []
        self.heading = ""
        self.figures = 0

    def add_text(self, text):
        text = cross_references(text)
        name = f"text-{len(self.cells)}"
        self.cells.append(dict(cell_type="markdown", id=name, metadata={}, source=text))

    def add_markdown(self, text):
        headings = re.findall(r"^#+ (.*)", text, re.M)
        if headings:
            self.heading = headings[-1]
        if not self.is_overview:
            text = re.sub(r"^# ", f"# {self.label}. ", text)
        self.add_text(text)

    def add_figure(self, output, caption):
        self.figures += 1
        name = f"{figure_stem(self.path)}-{self.figures}.png"
        folder = Path("nbs/figures")
        self.write(folder / name, base64.b64decode("".join(output["data"]["image/png"])))
        page = Path("overview") if self.is_overview else self.path.relative_to(root)
        link = os.path.relpath(folder / name, page.parent)
        label = str(self.figures) if self.is_overview else f"{self.label}.{self.figures}"
        return figure(link, caption, label, figure_width(output))

    def add_code(self, cell):
        marks = directives(source(cell))
        if "hide" in marks or "default_exp" in marks:
            return
        code = re.sub(r"^#\|.*\n?", "", source(cell), flags=re.M).strip("\n")
        outputs = []
        texts = []
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                texts.append(self.add_figure(output, marks.get("fig-cap") or self.heading))
            elif "text/markdown" in data:
                texts.append("".join(data["text/markdown"]))
            else:
                outputs.append(output)
        if code and ("hide_input" not in marks or outputs):
            tags = []
            if "hide_input" in marks:
                tags = ["remove-input"]
            elif "code-fold" in marks:  # the solution of an exercise
                tags = ["hide-cell"]
            shown = dict(source=code, outputs=outputs, metadata=dict(tags=tags))
            self.cells.append(cell | shown)
        for text in texts:
            self.add_text(text)

    def add_module_link(self):
        name = modules().get(self.path)
        if name:
            up = "../" * len(self.path.parent.relative_to(root).parts)
            self.add_text(f"*The module: [`{name}`]({up}api/{name}.md).*")

    def page(self):
        notebook = json.loads(self.path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                self.add_markdown(source(cell))
            elif cell["cell_type"] == "code":
                self.add_code(cell)
        self.add_module_link()
        return json.dumps(dict(notebook, cells=self.cells))


def page(path, write):
    """A notebook as the book shows it.

    Without hidden cells and directives, figures with numbers and captions, tables as text.
    """
    return PageWriter(path, write).page()


@cache
def modules():
    "Module by notebook."
    out = {}
    for path in chapters():
        export = re.search(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8"))
        if export and export[1] != "__init__":
            out[path] = export[1]
    return out


def signature(obj):
    try:
        return str(inspect.signature(obj)).replace("'", "")
    except (ValueError, TypeError):
        return "()"


def parameters(obj):
    "Table of parameters, or the signature where there is none."
    from nbdev.showdoc import DocmentTbl

    try:
        table = DocmentTbl(obj)._repr_markdown_().replace("| NoneType |", "|  |")
    except Exception:  # no source, or nothing to say of it
        table = ""
    return table or f"`{obj.__name__}{signature(obj)}`"


def entry(name, obj, level):
    "Name, docstring and table of parameters of a function or class."
    obj = getattr(obj, "__wrapped__", obj)
    generated = not obj.__doc__ or obj.__doc__.startswith(f"{obj.__name__}(")
    doc = "" if generated else inspect.getdoc(obj)
    kind = "class " if inspect.isclass(obj) else ""
    return f"{'#' * level} {kind}`{name}`\n\n{doc}\n\n{parameters(obj)}\n"


def public_methods(obj):
    own = vars(obj) if inspect.isclass(obj) else {}
    return {
        name: method
        for name, method in own.items()
        if not name.startswith("_") and inspect.isfunction(method) and method.__doc__
    }


def api(notebook, name):
    "The page of a module: all it exports, methods below their class."
    sys.path.insert(0, str(root))
    module = importlib.import_module(f"dreamer4_nb.{name}")
    link = f"../{notebook.relative_to(root)}"
    out = [f"# `{name}`\n\n{inspect.getdoc(module)}\n\nChapter: [{title(notebook)}]({link})\n"]
    for export in module.__all__:
        obj = getattr(module, export)
        if not (inspect.isclass(obj) or inspect.isfunction(obj)):
            continue
        out.append(entry(export, obj, 2))
        for method_name, method in public_methods(obj).items():
            out.append(entry(f"{export}.{method_name}", method, 3))
    return "\n".join(out)


def api_index():
    lines = ["# The package", "", "A page for each module, written from the comments beside"]
    lines += ["its parameters.", "", "| module | |", "|---|---|"]
    for name in modules().values():
        file = root / "dreamer4_nb" / f"{name.replace('.', '/')}.py"
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        lines.append(f"| [`{name}`](api/{name}.md) | {(doc or '').splitlines()[0]} |")
    return "\n".join(lines) + "\n"


def contents():
    "Title page: what the parts hold, chapter by chapter."
    out = []
    for part in read_toc()["parts"]:
        if not chapters_of(part):
            continue
        out.append(f"\n## {part['caption']}\n")
        for path in chapters_of(part):
            link = path.relative_to(root)
            below = f"<br>{summary(path)}" if summary(path) else ""
            out.append(f"**{number(path)}** [{title(path)}]({link}){below}\n")
    return "\n".join(out)


def drawing():
    path = next(p for p in chapters() if p.stem.endswith("drawing"))
    return DRAWING % (figure_stem(path), title(path), path.relative_to(root))


def site_toc():
    "The table of contents with the pages that are made from other sources."
    toc = read_toc()
    overview = dict(file="overview", title="Results and use")
    first = dict(caption="Overview", chapters=[overview])
    parts = [first, *(dict(part) for part in toc["parts"])]
    api_pages = [dict(file=f"api/{name}") for name in modules().values()]
    parts[-1] = dict(parts[-1], chapters=[*parts[-1]["chapters"]])
    parts[-1]["chapters"] += [
        dict(file="contributing"),
        dict(file="api", sections=api_pages),
        dict(file="changes"),
    ]
    return yaml.safe_dump(dict(toc, parts=parts), sort_keys=False)


class Stage:
    "The folder of the site's sources; what has not changed is left alone."

    def __init__(self, target):
        self.target = target
        self.written = set()

    def write(self, path, content):
        relative = path.relative_to(root) if path.is_absolute() else path
        path = self.target / relative
        content = content.encode() if isinstance(content, str) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.add(path)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)

    def remove_others(self):
        for path in self.target.rglob("*"):
            if path.is_file() and path not in self.written:
                path.unlink()


def stage(target):
    "Write the sources of the site."
    out = Stage(target)
    out.write(Path("overview.ipynb"), page(root / "index.ipynb", out.write))
    for path in chapters():
        out.write(path, page(path, out.write))
    for path in here.glob("*.md"):
        if path.stem != "title":
            out.write(path, cross_references(path.read_text(encoding="utf-8")))
    out.write(root / "nbs/images/rooms.svg", rooms.draw())
    title_page = (here / "title.md").read_text(encoding="utf-8")
    out.write(Path("index.md"), title_page + drawing() + contents())
    for name, source_name in (("contributing", "CONTRIBUTING"), ("changes", "CHANGELOG")):
        text = (root / f"{source_name}.md").read_text(encoding="utf-8")
        out.write(Path(f"{name}.md"), text)
    for notebook, name in modules().items():
        out.write(Path(f"api/{name}.md"), cross_references(api(notebook, name)))
    out.write(Path("api.md"), api_index())
    out.write(Path("_config.yml"), (here / "_config.yml").read_text(encoding="utf-8"))
    out.write(Path("_toc.yml"), site_toc())
    out.write(Path("_static/book.css"), (here / "book.css").read_text(encoding="utf-8"))
    out.remove_others()


def build(
    out=root / "_book",  # folder
):  # folder of the pages
    "Write the sources, and let jupyter-book write the pages."
    out = Path(out).resolve()
    stage(out / "source")
    program = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    command = [program, "build", "-q", out / "source", "--path-output", out]
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.stderr.strip():
        print(result.stderr.strip())
    if result.returncode:
        raise SystemExit(result.stdout + "\nthe book was not built")
    refresh = '<meta http-equiv="refresh" content="0; url=_build/html/index.html">'
    (out / "index.html").write_text(refresh)
    return out / "_build/html"


if __name__ == "__main__":
    print(f"== book: open {build(*sys.argv[1:2]).parents[1] / 'index.html'}")
