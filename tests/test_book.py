"The book's sources point at what is there; the built site does too, and needs no network"

import json
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / "nbs/book"))

import build  # noqa: E402

notebooks = [*sorted(root.glob("nbs/**/[0-9][0-9]_*.ipynb")), root / "index.ipynb"]
chapters = build.chapters()
pages = [
    *notebooks,
    *sorted(root.glob("nbs/book/*.md")),
    root / "CONTRIBUTING.md",
    root / "README.md",
]
# links of the title page, which lies elsewhere when built
FROM_BUILD = {
    "overview.ipynb",
    "api.md",
    "nbs/book/your_own_recordings.md",
    "nbs/book/your_own_world.md",
    "nbs/book/glossary.md",
}
LINE_LENGTH = 95  # columns that fit a page of the site


def name_of(path):
    return str(path.relative_to(root))


def cells_of(path, kind):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def text_of(path):
    "The Markdown of a page, without code."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in cells_of(path, "markdown"))
    without_blocks = re.sub(r"```.*?```", "", text, flags=re.S)
    return re.sub(r"`[^`\n]*`", "", without_blocks)


def anchors(path):
    headings = re.findall(r"^#+ (.*)", text_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", pages, ids=name_of)
def test_links_and_images_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        url = urlparse(target)
        if url.scheme or (page.name == "title.md" and target in FROM_BUILD):
            continue
        to = page.parent / unquote(url.path) if url.path else page
        if not to.exists() or (url.fragment and url.fragment not in anchors(to)):
            broken.append(target)
    assert broken == []


def test_every_notebook_is_in_the_contents():
    assert sorted(chapters) == sorted(p for p in notebooks if p.stem != "index")
    for part in build.read_toc()["parts"]:
        for entry in part["chapters"]:
            file = root / entry["file"]
            assert file.with_suffix(".ipynb").exists() or file.with_suffix(".md").exists()


def test_titles_differ():
    titles = [build.title(path) for path in chapters]
    assert [t for t in titles if titles.count(t) > 1] == []


def python_sources():
    yield from sorted((root / "dreamer4_nb").rglob("*.py"))
    yield from sorted((root / "tests").glob("*.py"))


@pytest.mark.parametrize("path", [*chapters, *python_sources()], ids=name_of)
def test_chapters_are_named_by_their_titles(path):
    'A message or comment says: chapter "Title". Numbers would change with the order.'
    if path.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in cells_of(path, "code"))
    else:
        text = path.read_text(encoding="utf-8")
    text = text.replace('\\"', '"').replace("\\'", "'")
    text = re.sub(r'"\s*\n\s*f?"', "", text)  # a message over several lines
    titles = {build.title(p) for p in chapters} | {"Title"}
    named = re.findall(r"\bchapters? \"([^\"\n]+)\"", text)
    assert [t for t in named if t not in titles] == []
    assert re.findall(r"\bchapters? \d\d?\b", text) == []


@pytest.mark.parametrize("page", pages, ids=name_of)
def test_no_page_counts_chapters(page):
    assert re.findall(r"\bchapters? \d\d\b", text_of(page)) == []


def test_equations_are_the_papers():
    "Equations 4 to 11 of the paper, each set in one chapter."
    assert set(build.equations()) == {str(n) for n in range(4, 12)}


def test_captions_are_on_figures():
    "A caption without a figure is a caption that moved."
    lost = []
    for path in notebooks:
        for cell in cells_of(path, "code"):
            has_caption = re.search(r"^#\| fig-cap:", "".join(cell["source"]), re.M)
            has_figure = any("image/png" in o.get("data", {}) for o in cell["outputs"])
            if has_caption and not has_figure:
                lost.append((path.name, cell["id"]))
    assert lost == []


@pytest.mark.parametrize("chapter", chapters, ids=name_of)
def test_lines_of_code_fit_the_page(chapter):
    long = []
    for cell in cells_of(chapter, "code"):
        for line in "".join(cell["source"]).split("\n"):
            if len(line) > LINE_LENGTH and not line.startswith("#|"):
                long.append(line)
    assert long == []


@pytest.mark.parametrize("chapter", chapters, ids=name_of)
def test_every_chapter_has_an_exercise_with_a_solution(chapter):
    """One exercise and, right behind it, a folded cell that runs with the others.

    It would fail if the answer were wrong.
    """
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    asked = [
        i
        for i, cell in enumerate(cells)
        if cell["cell_type"] == "markdown" and "**Exercise.**" in "".join(cell["source"])
    ]
    folded = [
        i
        for i, cell in enumerate(cells)
        if cell["cell_type"] == "code"
        and re.search(r"^#\| code-fold: true$", "".join(cell["source"]), re.M)
    ]
    assert len(asked) == 1
    assert "".join(cells[asked[0]]["source"]).count("**Exercise.**") == 1
    assert folded == [asked[0] + 1]
    solution = cells[folded[0]]
    assert solution["metadata"] == dict(jupyter=dict(outputs_hidden=True, source_hidden=True))
    shown = json.loads(build.page(chapter, lambda *_: None))["cells"]
    tags = [cell["metadata"]["tags"] for cell in shown if cell["cell_type"] == "code"]
    assert tags.count(["hide-cell"]) == 1  # folded on the site, too
    code = "".join(solution["source"])
    assert re.search(r"^[^#]*\b(assert |test_\w+\()", code, re.M)
    assert not re.search(r"^#\| *(hide|slow|notest|eval|export)", code, re.M)


def test_numbers_become_links():
    linked = build.numbered(
        "equations 4, 5 and 99; `equation 4`", "equation", {"4": "a", "5": "b"}.get
    )
    assert linked == "equations [4](a), [5](b) and 99; `equation 4`"


def test_a_world_of_ones_own(tmp_path, monkeypatch):
    "The code of that page is a world that can be recorded, and what is written is read."
    from dreamer4_nb.cli import main
    from dreamer4_nb.data.convert import convert
    from dreamer4_nb.data.dataset import Recordings

    monkeypatch.chdir(tmp_path)
    page = (root / "nbs/book/your_own_world.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    Path("bar.py").write_text(code, encoding="utf-8")
    (command,) = re.findall(r"dreamer4 (record .*)", page)
    main([*command.split(), "--episodes", "8"])
    convert("runs/bar", "converted", progress=False)
    recordings = Recordings("converted")
    assert len(recordings) == 8
    assert recordings.actions(0).shape == (60, 1)
    assert recordings.codec.space.choices["action"] == ("noop", "left", "right")
    assert sum(recordings.rewards(i).sum() for i in range(8)) > 0


def foreign_addresses(text):
    pattern = r'<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"'
    return set(re.findall(pattern, text))


def broken_links(path, text, html):
    broken = set()
    for target in re.findall(r'<\w+\b[^>]*?\s(?:href|src)="([^"]+)"', text):
        url = urlparse(target)
        if url.scheme or target.startswith(("#", "//", "data:")):
            continue
        to = (path.parent / unquote(url.path)).resolve() if url.path else path
        anchor = f'id="{unquote(url.fragment)}"'
        if not to.exists() or (url.fragment and to in html and anchor not in html[to]):
            broken.add((path.name, target))
    return broken


def cut_lines(site):
    "Pages on which a block of code is wider than its frame, in a browser 1,200 pixels wide."
    from playwright.sync_api import sync_playwright

    script = """() => [...document.querySelectorAll('.cell_input pre')]
        .filter(pre => pre.scrollWidth > pre.clientWidth + 1).length"""
    cut = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=dict(width=1200, height=900))
        for path in sorted((site / "nbs").rglob("*.html")):
            page.goto(path.as_uri(), wait_until="domcontentloaded")
            if page.evaluate(script):
                cut.append(path.name)
        browser.close()
    return cut


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("jupyter_book", reason="make book installs it")
    return build.build(tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_site_is_whole(site):
    "Follow every link inside, and look for anything that would be fetched from elsewhere."
    html = {
        path: path.read_text(encoding="utf-8")
        for path in site.rglob("*.html")
        if "_static" not in path.parts
    }
    assert len(html) > 60
    assert (site / "searchindex.js").exists()
    assert (site / "_static/mathjax/tex-chtml.js").exists()
    foreign = set()
    broken = set()
    for path, text in html.items():
        foreign |= foreign_addresses(text)
        broken |= broken_links(path, text, html)
    assert (foreign, broken) == (set(), set())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
def test_no_line_of_code_is_cut(site):
    assert cut_lines(site) == []
