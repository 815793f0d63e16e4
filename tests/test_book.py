"The book's sources point at what is there; the built site does so as well, and needs no network"

import importlib.util
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(root.glob("nbs/*.ipynb")) + sorted(root.glob("index.ipynb"))
pages = [
    *notebooks,
    *sorted(root.glob("nbs/book/*.md")),
    root / "CONTRIBUTING.md",
    root / "README.md",
]
FROM_BUILD = {
    "overview.ipynb",
    "api.md",
    "nbs/book/your_own_recordings.md",
    "nbs/book/your_own_world.md",
    "nbs/book/glossary.md",
}  # title.md lies elsewhere when built


def texts(path):
    "The Markdown of a page, without code."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(
            "".join(c["source"])
            for c in json.loads(text)["cells"]
            if c["cell_type"] == "markdown"
        )
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.S))


def anchors(path):
    return {
        re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.*)", texts(path), re.M)
    }


def build():
    spec = importlib.util.spec_from_file_location("build", root / "nbs/book/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", pages, ids=lambda p: p.name)
def test_links_and_images_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", texts(page)):
        u = urlparse(target)
        if u.scheme or (page.name == "title.md" and target in FROM_BUILD):
            continue
        to = page.parent / unquote(u.path) if u.path else page
        if not to.exists() or (u.fragment and u.fragment not in anchors(to)):
            broken.append(target)
    assert broken == []


def test_every_chapter_is_in_the_contents():
    b = build()
    toc = b.toc()
    assert [o.stem for o in b.chapters() if f"nbs/{o.stem}\n" not in toc] == []
    for o in re.findall(r"file: nbs/book/(\w+)", toc):
        assert (root / f"nbs/book/{o}.md").exists()


def test_chapters_that_a_text_names_exist():
    '\'chapter "When advantages say nothing"\' and \'chapters "The sampler that stops short", "Five small faults", "The reward head that predicts nothing", "When advantages say nothing" and "A tokenizer that looks back"\' become links; a number without a chapter would stay bare.'
    there = {o.name[:2] for o in notebooks}
    found = {
        (p.name, n)
        for p in pages
        for m in re.findall(r"\bchapters? (\d\d(?:(?:, and |, | and | to )\d\d)*)", texts(p))
        for n in re.findall(r"\d\d", m)
    }
    assert sorted(o for o in found if o[1] not in there) == []


def test_equations_are_the_papers():
    "Equations 4 to 11 of the paper, each set in one chapter."
    assert set(build().equations()) == {str(n) for n in range(4, 12)}


def test_captions_are_on_figures():
    "A caption without a figure is a caption that moved."
    lost = [
        (p.name, c["id"])
        for p in notebooks
        for c in json.loads(p.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
        if re.search(r"^#\| fig-cap:", "".join(c["source"]), re.M)
        and not any("image/png" in o.get("data", {}) for o in c["outputs"])
    ]
    assert lost == []


@pytest.mark.parametrize(
    "chapter", [p for p in notebooks if p.name != "index.ipynb"], ids=lambda p: p.stem
)
def test_every_chapter_has_an_exercise_with_a_solution(chapter):
    "One exercise, and right behind it a cell that is folded, runs with the others, and would fail if the answer were wrong."
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    asked = [
        i
        for i, c in enumerate(cells)
        if c["cell_type"] == "markdown" and "**Exercise.**" in "".join(c["source"])
    ]
    folded = [
        i
        for i, c in enumerate(cells)
        if c["cell_type"] == "code"
        and re.search(r"^#\| code-fold: true$", "".join(c["source"]), re.M)
    ]
    assert len(asked) == 1 and "".join(cells[asked[0]]["source"]).count("**Exercise.**") == 1
    assert folded == [asked[0] + 1]
    solution = cells[folded[0]]
    assert solution["metadata"] == dict(jupyter=dict(outputs_hidden=True, source_hidden=True))
    shown = json.loads(build().page(chapter, lambda *a: None))["cells"]
    assert [c["metadata"]["tags"] for c in shown if c["cell_type"] == "code"].count(
        ["hide-cell"]
    ) == 1  # folded on the site, too
    code = "".join(solution["source"])
    assert re.search(r"^[^#]*\b(assert |test_\w+\()", code, re.M) and not re.search(
        r"^#\| *(hide|slow|notest|eval|export)", code, re.M
    )


def test_numbers_become_links():
    b = build()
    assert (
        b.numbered(
            'chapters 31, 32 and 99; `chapter "The sampler that stops short"`',
            "chapter",
            {"31": "a", "32": "b"}.get,
        )
        == 'chapters [31](a), [32](b) and 99; `chapter "The sampler that stops short"`'
    )


def test_recording_a_world_of_ones_own(tmp_path, monkeypatch):
    "The code of that page runs, and what it writes is read."
    from dreamer4_nb.data.convert import convert
    from dreamer4_nb.data.dataset import Recordings

    monkeypatch.chdir(tmp_path)
    code = re.findall(
        r"```python\n(.*?)```",
        (root / "nbs/book/your_own_world.md").read_text(encoding="utf-8"),
        re.S,
    )[0]
    exec(code, {})
    convert("runs/bar", "converted", progress=False)
    r = Recordings("converted")
    assert (
        len(r) == 8
        and r.actions(0).shape == (60, 1)
        and sum(r.rewards(i).sum() for i in range(8)) > 0
    )


@pytest.mark.slow
def test_site(tmp_path, capsys):
    "Build it, follow every link inside, and look for anything that would be fetched from elsewhere."
    pytest.importorskip("jupyter_book", reason="make book installs it")
    site = build().build(tmp_path)
    assert "WARNING" not in capsys.readouterr().out
    html = {
        o: o.read_text(encoding="utf-8")
        for o in site.rglob("*.html")
        if "_static" not in o.parts
    }
    assert (
        len(html) > 60
        and (site / "searchindex.js").exists()
        and (site / "_static/mathjax/tex-chtml.js").exists()
    )
    foreign, broken = set(), set()
    for path, text in html.items():
        foreign |= set(
            re.findall(
                r'<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"',
                text,
            )
        )
        for target in re.findall(r'<\w+\b[^>]*?\s(?:href|src)="([^"]+)"', text):
            u = urlparse(target)
            if u.scheme or target.startswith(("#", "//", "data:")):
                continue
            to = (path.parent / unquote(u.path)).resolve() if u.path else path
            if not to.exists() or (
                u.fragment and to in html and f'id="{unquote(u.fragment)}"' not in html[to]
            ):
                broken.add((path.name, target))
    assert (foreign, broken) == (set(), set())
