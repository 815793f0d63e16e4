"The panel in a real browser, by JupyterLab and by Voila; players of runs that lack something; the command's refusals"

import io
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from dreamer4_nb.play.panel import page_notebook
from dreamer4_nb.play.player import Player
from dreamer4_nb.run.run import Run
from page import CHROMIUM, browser, lab, measure, voila
from test_cli import call, refused

from dreamer4_nb import config as configs

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="no Chromium here, or no playwright: apt-get install chromium, pip install playwright",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return (
        Run(tmp_path_factory.mktemp("play") / "run", configs.named("smoke"), progress=False)
        .run_all("imagination")
        .out
    )


# players


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_of_before_has_no_value(copy):
    for name in ("value", "imagination"):
        (copy / "policies" / f"{name}.safetensors").unlink()
    player = Player(copy)
    assert set(player.policies) == {"bc", "bc_all"} and player.play("bc").value is None


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(world_seed=None), "names no seed"),
        (dict(world_seed=12345), "looks different"),
        (dict(task="fly"), "fly"),
    ],
)
def test_the_dream_is_alone_where_no_world_fits(copy, change, word):
    path = next((copy / "converted" / "episodes").glob("*_00000")) / "info.json"
    info = json.loads(path.read_text())
    info["metadata"] = {k: v for k, v in (info["metadata"] | change).items() if v is not None}
    path.write_text(json.dumps(info))
    player = Player(copy)
    moment = player.step("left")
    assert (
        word in player.alone
        and moment.truth is None
        and moment.paid is None
        and player.picture().shape == (256, 256, 3)
    )
    assert player.back() and not player.back()
    with pytest.raises(ValueError, match=word):
        player.save_recording(copy / "played", truth=True)
    assert player.reset(1).alone == ""


def test_context_and_sampling_steps(run):
    player = Player(run)
    shown = {}
    for K, context in ((1, 8), (4, 8), (4, 2), (4, 8)):
        player.K, player.context = K, context
        player.reset(2, 30)
        shown.setdefault((K, context), []).append(
            np.stack([player.step(n).frame for n in ("left", "do", "up")])
        )
    (a, b), one, short = shown[4, 8], shown[1, 8][0], shown[4, 2][0]
    assert (a == b).all() and (a != one).any() and (a != short).any()


# the command


def test_refusals(tmp_path):
    refused(call("play", tmp_path / "nothing"), "no run here", "--pretrained")
    refused(call("play", tmp_path, "--port", 70000), "--port", code=2)


# the browser


def picture(page):
    "What the screen shows, once it is drawn"
    from PIL import Image

    page.evaluate("document.querySelector('.dreamer4-screen img').decode()")
    return np.asarray(
        Image.open(io.BytesIO(page.locator(".dreamer4-screen img").screenshot())).convert(
            "RGB"
        )
    )


def reward(page):
    return page.locator('tspan[data-curve="reward"]').text_content()


def press_and_look(page, *keys):
    "Keys change the picture and move the reward; screenshots are neither empty nor equal"
    page.locator(".dreamer4-screen img").wait_for()
    page.locator(".dreamer4-screen").click()
    pictures, rewards = [picture(page)], [reward(page)]
    for i, key in enumerate(keys, 1):
        page.keyboard.press(key)
        page.get_by_text(f"{i} steps").wait_for()
        pictures.append(picture(page))
        rewards.append(reward(page))
    for a in pictures:
        assert min(a.shape[:2]) >= 256 and a.std() > 5, "empty"
    for a, b in zip(pictures, pictures[1:]):
        assert (a != b).any(), "equal"
    assert len(set(rewards)) > 1, rewards
    return pictures


@needs_browser
def test_voila(run, tmp_path):
    with voila(run, tmp_path) as url, browser() as page:
        page.goto(url)
        pictures = press_and_look(page, "ArrowLeft", "ArrowUp", " ")
        page.keyboard.press("Backspace")
        page.get_by_text("2 steps").wait_for()
        assert (picture(page) == pictures[2]).all(), "a step back shows the picture of before"
        page.get_by_role("button", name="do", exact=True).click()
        page.get_by_text("3 steps").wait_for()
        assert (picture(page) == pictures[3]).all(), "the same action, the same picture"
        page.get_by_role("button", name="save film").click()
        page.get_by_text("film: ").wait_for()
        assert len(list(tmp_path.glob("*.gif"))) == 1
        page.get_by_role("button", name="let the agent play").click()
        page.get_by_text("6 steps").wait_for()
        page.get_by_role("button", name="let the agent play").click()
        assert measure(page, 4, 1)["steps"] > 0


@needs_browser
def test_jupyterlab(run, tmp_path):
    (tmp_path / "play.ipynb").write_text(json.dumps(page_notebook(run, tmp_path)))
    with lab(tmp_path) as url, browser() as page:
        page.goto(url)
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        page.get_by_text(
            "| Idle"
        ).wait_for()  # a kernel that is still starting would ask which one to take
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        cells = page.locator(".jp-Notebook .jp-Cell")
        page.locator(".dreamer4-screen img").wait_for()
        before = cells.count()
        press_and_look(
            page, "ArrowDown", "ArrowUp", "d", "d", "a"
        )  # in JupyterLab's command mode: move, move, delete the cell, insert one
        assert cells.count() == before
