"A report of whatever a run has left, in which nothing from the run is markup"

import json
import re

import numpy as np
import pytest

from dreamer4_nb.config import Config, smoke
from dreamer4_nb.report import (
    SECTIONS,
    Cell,
    LeftOut,
    Page,
    Paragraph,
    Picture,
    Prose,
    Table,
    attempt,
    render_blocks,
    write_report,
)
from dreamer4_nb.run.folder import RUN_FORMAT, RUN_VERSION

POLICIES = {
    "random": {"returns": [0, 1, 0], "temperature": None},
    "bc": {"returns": [4, 5, 6], "temperature": 1.0},
    "bc_tempered": {"returns": [6, 7, 9], "temperature": 0.5},
    "imagination": {"returns": [8, 9, 9], "temperature": 1.0},
    "imagination_tempered": {"returns": [8, 9, 10], "temperature": 0.7},
}


@pytest.fixture
def write_run(tmp_path):
    def write(config=None, results=None, **changes):
        config = config or Config()
        run = {
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "task": "collect_wood",
            "size": config.name,
            "seed": 0,
            "config": config.to_dict(),
            "stages": {"record": {"minutes": 1.5, "frames_per_second": None}},
        }
        (tmp_path / "run.json").write_text(json.dumps(run | changes))
        if results is not None:
            (tmp_path / "results.json").write_text(json.dumps(results))
        return tmp_path

    return write


def left_out(html):
    return re.findall(r'<p class="skipped">Left out: (.*?)\.</p>', html)


def words(html):
    "The text of a page, as a reader sees it."
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_a_task_with_markup_stays_text(write_run):
    html = write_report(write_run(task="collect_<b>wood</b>")).read_text()
    assert "<title>dreamer4_nb · collect &lt;b&gt;wood&lt;/b&gt; · seed 0</title>" in html
    assert "<b>wood" not in html


@pytest.mark.parametrize("field", ["machine", "size"])
def test_fields_of_the_run_stay_text(write_run, field):
    html = write_report(write_run(**{field: "<script>alert(1)</script>"})).read_text()
    assert "<script>" not in html and "&lt;script&gt;alert(1)" in html


def test_names_of_policies_and_stages_stay_text(write_run):
    results = {"policies": {"<i>mine</i>": {"returns": [1, 2]}}}
    stages = {"<i>rest</i>": {"minutes": 1.0, "note": "a < b & c"}}
    html = write_report(write_run(results=results, stages=stages)).read_text()
    assert "<i>mine" not in html and "&lt;i&gt;mine&lt;/i&gt;, sampled" in html
    assert "<i>rest" not in html and "a &lt; b &amp; c" in html


def test_an_error_with_markup_stays_text():
    def fails():
        raise ValueError("<b>bold</b>.")

    html = render_blocks(attempt(fails))
    assert left_out(html) == ["&lt;b&gt;bold&lt;/b&gt;"]


def test_alternative_text_cannot_leave_its_attribute():
    html = render_blocks([Picture(b"", 'x" onload="alert(1)')])
    assert 'alt="x&#34; onload=&#34;alert(1)"' in html


def test_an_empty_folder_names_what_is_missing(tmp_path):
    html = write_report(tmp_path).read_text()
    assert "No verdict: the results contain no returns of imagination, sampled." in html
    assert left_out(html) == [
        "results.json contains no policies",
        "evaluation/pictures.npz is not there",
        "imagination/history.json is not there",  # its alarms
        "imagination/history.json is not there",
        "imagination/advantages.npz is not there",
        "imagination/advantages.npz is not there",
        "imagination/advantages.npz is not there",
        "imagined returns were not compared with real ones",
        "evaluation/pictures.npz is not there",
        "there is no &#39;by_step&#39; in its file",
        "evaluation/pictures.npz is not there",
        "run.json contains no stages",
        "run.json is not there",
    ]
    assert "dynamics/log.jsonl is not there or empty." in html


def test_a_damaged_file_is_named_in_its_section(write_run):
    run_dir = write_run(results={"policies": POLICIES})
    (run_dir / "imagination").mkdir()
    (run_dir / "imagination" / "history.json").write_text("[{")
    (run_dir / "imagination" / "advantages.npz").write_text("not an archive")
    html = write_report(run_dir).read_text()
    reasons = left_out(html)
    assert any(r.startswith("imagination/history.json: not readable as JSON") for r in reasons)
    assert any(r.startswith("imagination/advantages.npz: ") for r in reasons)
    assert str(run_dir) not in html
    assert "imagination, best temperature" in html


@pytest.mark.parametrize("content", ["{", "[1]", '"text"'])
def test_a_damaged_results_file_costs_the_verdict(write_run, content):
    run_dir = write_run()
    (run_dir / "results.json").write_text(content)
    assert "No verdict" in write_report(run_dir).read_text()


def test_results_of_another_form_cost_the_verdict(write_run):
    html = write_report(write_run(results={"policies": {"imagination": 3}})).read_text()
    assert "No verdict: results.json cannot be understood" in html


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder. Hint: "):
        write_report(tmp_path / "nowhere")


def test_another_version_of_the_folder(write_run):
    with pytest.raises(ValueError, match=r"run.json: version: 99, expected 1"):
        write_report(write_run(version=99))


def test_the_policies_in_a_table(write_run):
    html = write_report(write_run(results={"policies": POLICIES})).read_text()
    text = words(html)
    assert "Wood per episode in the true world, on 3 test worlds" in text
    assert "imagination, sampled 8.7 [7.2, 10.1] +1.3 [−1.5, 4.2] 1" in text
    assert "against the BC policy at its best temperature" in text


def test_achievements_come_from_the_results_or_are_counted(write_run):
    episodes = [{"collect_wood": 4}, {"collect_wood": 9, "place_table": 30}]
    policies = {"bc": {"returns": [1, 2], "achievements": episodes}}
    counted = words(
        write_report(write_run(task="tools", results={"policies": policies})).read_text()
    )
    assert "collect wood 100% place table 50% make wood pickaxe 0" in counted
    saved = {"collect_wood": {"bc": 0.25}}
    text = words(write_report(write_run(results={"ladder": saved})).read_text())
    assert "collect wood 25%" in text


def test_only_a_trial_is_set_beside_the_run_in_the_package(write_run):
    title = "What the laptop's run adds"
    assert title not in words(write_report(write_run()).read_text()).replace("&#39;", "'")
    trial = words(write_report(write_run(smoke())).read_text()).replace("&#39;", "'")
    assert title in trial


def test_aims_are_for_runs_that_are_long_enough(write_run):
    results = {"tokenizer_psnr": 33.0, "policies": POLICIES}
    assert "aim 32 dB: met" in words(write_report(write_run(results=results)).read_text())
    assert "aim 32 dB" not in write_report(write_run(smoke(), results)).read_text()


def test_a_configuration_that_cannot_be_read_costs_nothing(write_run):
    run_dir = write_run(config=None)
    state = json.loads((run_dir / "run.json").read_text())
    state["config"] = {"no_such_section": 1}
    (run_dir / "run.json").write_text(json.dumps(state))
    assert Page(run_dir).config is None
    assert "no_such_section" in write_report(run_dir).read_text()


def test_figures_are_saved_beside_the_page(write_run):
    run_dir = write_run(results={"policies": POLICIES})
    html = write_report(run_dir).read_text()
    saved = {path.name for path in (run_dir / "figures").iterdir()}
    assert saved == {"policies.png", "stages.png"}
    assert 'src="data:image/png;base64,' in html and 'src="http' not in html


def test_films(write_run):
    run_dir = write_run()
    (run_dir / "evaluation").mkdir()
    film = np.zeros((4, 3, 8, 8), np.uint8)
    np.savez(run_dir / "evaluation" / "pictures.npz", film_bc=film, film_random=film)
    html = write_report(run_dir).read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions == ["random", "BC policy"]
    assert 'class="pixels"' in html
    assert (run_dir / "figures" / "film_bc.gif").exists()


def test_the_page_opens_with_players_bc_policy_and_imagination(write_run):
    results = {"policies": POLICIES, "players": {"name": "weak", "returns": [0, 3]}}
    run_dir = write_run(results=results)
    text = words(write_report(run_dir).read_text())
    numbers = (
        "1.5 wood recorded players, 2 episodes 7.3 wood BC policy, best temperature, "
        "3 test worlds 9.0 wood imagination, best temperature, 3 test worlds"
    )
    assert text.index(numbers) < text.index("both sampled")
    (run_dir / "evaluation").mkdir()
    films = {f"film_{name}": np.zeros((4, 3, 8, 8), np.uint8) for name in ("players", "bc")}
    np.savez(run_dir / "evaluation" / "pictures.npz", **films)
    html = write_report(run_dir).read_text()
    assert re.findall(r"<figcaption>(.*?)</figcaption>", html) == [
        "a recorded player",
        "BC policy",
    ]
    assert "Episodes to watch" not in html  # both are at the top


def test_dreamed_reward_is_compared_with_paid(write_run):
    pair = {"imagined": [3.0, 1.0], "real": [1.0, 1.0]}
    html = write_report(write_run(results={"imagined_vs_real": pair})).read_text()
    text = words(html)
    assert "2.00× dreamed reward against paid, in real games aim at most 1.3×: missed" in text
    assert "The next 15 steps at 2 moments of real games" in text
    assert "they pay 2.00 wood; the world paid 1.00." in text
    pair["real"] = [0.0, 0.0]
    html = write_report(write_run(results={"imagined_vs_real": pair})).read_text()
    assert "against paid, in real games" not in html


@pytest.mark.parametrize(("objective", "word"), [("pmpo", "sign"), ("ppo", "size")])
def test_what_the_policy_learns_from_is_said(write_run, objective, word):
    changes = {"imagination.objective": objective, "imagination.replay": 1}
    html = write_report(write_run(Config().change(changes))).read_text()
    assert ("learns from the sign of the advantage" in html) == (word == "sign")
    assert ("by the size of the difference" in html) == (word == "size")


def test_a_section_of_ones_own(write_run, monkeypatch):
    def section(page):
        return [Paragraph(f"This is {page.task}.")]

    monkeypatch.setattr("dreamer4_nb.report.SECTIONS", [*SECTIONS, ("Mine", section)])
    html = write_report(write_run()).read_text()
    assert "<h2>Mine</h2>" in html and "<p>This is collect_wood.</p>" in html


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a < b", "a &lt; b"),
        (Cell("1.5", bold=True), "<b>1.5</b>"),
        (Cell("1", unbroken="[0, 2]"), '1 <span class="unbroken">[0, 2]</span>'),
        (Cell("x", dot="#fff"), '<span class="dot" style="background:#fff"></span>x'),
        (Cell(bar=0.5), '<span class="bar" style="width:50%"></span>'),
        (Cell(fraction=0.0), '<span class="none">0</span>'),
    ],
)
def test_cells(cell, expected):
    html = render_blocks([Table(["head"], [[cell]])])
    assert f"<td>{expected}</td>" in html


def test_every_kind_of_prose_is_in_the_template():
    for name in ("signs of advantages", "sizes of advantages", "first look"):
        assert "<p>" in render_blocks([Prose(name)])


def test_a_reason_is_one_sentence():
    def fails():
        raise ValueError("it is missing.")

    assert attempt(fails) == [LeftOut("it is missing")]
    assert attempt(lambda: {}["kl"]) == [LeftOut("there is no 'kl' in its file")]
