"""Players and their errors, the command `dreamer4 play`, the panel in a real browser

JupyterLab and Voila serve it; both must let it have its keys.
"""

import io
import json
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from page import CHROMIUM, browser, lab, measure, voila
from PIL import Image
from test_cli import assert_error, assert_usage, call

from dreamer4_nb.config import named
from dreamer4_nb.pipeline import run_all
from dreamer4_nb.play.explorer import Explorer
from dreamer4_nb.play.panel import free_port, page_notebook
from dreamer4_nb.play.player import Player, save_recording, step_picture
from dreamer4_nb.run.folder import RunError
from dreamer4_nb.run.run import Run

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="no Chromium or no playwright: apt-get install chromium, pip install playwright",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play") / "run"
    run_all(Run(folder, named("smoke"), progress=False), "imagination")
    return folder


@pytest.fixture(scope="module")
def player(run):
    return Player(run)


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


# players


def test_a_run_without_imagination_has_no_value(copy):
    for name in ("value", "imagination"):
        (copy / "policies" / f"{name}.safetensors").unlink()
    player = Player(copy)
    assert set(player.policies) == {"bc", "bc_all"}
    assert player.play("bc").value is None


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(world_seed=None), "names no seed"),
        (dict(world_seed=12345), "looks different"),
        (dict(task="fly"), "fly"),
    ],
)
def test_there_is_only_the_dream_where_no_world_fits(copy, change, word):
    path = next((copy / "converted" / "episodes").glob("*_00000")) / "info.json"
    info = json.loads(path.read_text())
    metadata = info["metadata"] | change
    info["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    path.write_text(json.dumps(info))
    player = Player(copy)
    played = player.step("left")
    assert word in player.why_no_world
    assert played.true_frame is None and played.true_reward is None
    assert step_picture(played).shape == (256, 256, 3)
    assert player.step_back() and not player.step_back()
    with pytest.raises(ValueError, match=word):
        save_recording(player, copy / "played", truth=True)
    assert player.reset(1).why_no_world == ""


def frames_of(player, sample_steps, context):
    "Three dreamed frames with so many calls of the network and so long a memory"
    player.sample_steps = sample_steps
    player.context = context
    player.reset(2, 30)
    return np.stack([player.step(name).frame for name in ("left", "do", "up")])


def test_context_and_sampling_steps(run):
    player = Player(run)
    one_call = frames_of(player, 1, 8)
    first = frames_of(player, 4, 8)
    assert (frames_of(player, 4, 2) != first).any()
    assert (frames_of(player, 4, 8) == first).all()
    assert (one_call != first).any()


def test_an_unknown_policy_is_named(player):
    with pytest.raises(ValueError, match="policy: 'luck' is not in this run. Hint: it has bc"):
        player.play("luck")


def test_an_unknown_action_is_named(player):
    with pytest.raises(ValueError, match="action: 'fly' is unknown. Hint: take one of noop"):
        player.step("fly")


def test_an_episode_that_does_not_exist(player):
    with pytest.raises(ValueError, match="episode: 99 .* Hint: take one from 0 to 5"):
        player.reset(99)


def test_a_step_that_does_not_exist(player):
    with pytest.raises(ValueError, match="step: 1000 is not in episode 0. Hint"):
        player.reset(0, 1000)


def test_nothing_to_save(player, tmp_path):
    player.reset(0)
    with pytest.raises(ValueError, match="recording: there is no step yet"):
        save_recording(player, tmp_path)


@pytest.mark.parametrize("make", [Player, Explorer])
def test_a_run_without_an_agent(tmp_path, make):
    run = Run(tmp_path / "new", named("smoke"), progress=False)
    with pytest.raises(RunError, match="agent is not done. Hint: run dreamer4 train"):
        make(run)


# the command


def test_no_run(tmp_path):
    assert_error(call("play", tmp_path / "nothing"), "no run here", "--pretrained")


def test_a_port_that_cannot_be(tmp_path):
    assert_usage(call("play", tmp_path, "--port", 70000), "--port")


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="Hint: name another --port"):
            free_port(other.getsockname()[1])


# the browser


SCREEN = ".dreamer4-screen"


def picture(page):
    "What the screen shows, once it is drawn"
    page.evaluate(f"document.querySelector('{SCREEN} img').decode()")
    screenshot = page.locator(f"{SCREEN} img").screenshot()
    return np.asarray(Image.open(io.BytesIO(screenshot)).convert("RGB"))


def reward(page):
    return page.locator('tspan[data-curve="reward"]').text_content()


def press_and_look(page, *keys):
    "Keys change the picture and move the reward; screenshots are neither empty nor equal"
    page.locator(f"{SCREEN} img").wait_for()
    page.locator(SCREEN).click()
    pictures = [picture(page)]
    rewards = [reward(page)]
    for i, key in enumerate(keys, 1):
        page.keyboard.press(key)
        page.get_by_text(f"{i} steps").wait_for()
        pictures.append(picture(page))
        rewards.append(reward(page))
    for shot in pictures:
        assert min(shot.shape[:2]) >= 256 and shot.std() > 5, "empty"
    for before, after in zip(pictures, pictures[1:]):
        assert (before != after).any(), "equal"
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
        page.locator(".dreamer4-chip.by-policy").first.wait_for()
        page.get_by_role("button", name="let the agent play").click()
        assert measure(page, 4, 1)["steps"] > 0


@needs_browser
def test_jupyterlab(run, tmp_path):
    (tmp_path / "play.ipynb").write_text(json.dumps(page_notebook(run, tmp_path)))
    with lab(tmp_path) as url, browser() as page:
        page.goto(url)
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        # a kernel that is still starting would ask which one to use
        page.get_by_text("| Idle").wait_for()
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        cells = page.locator(".jp-Notebook .jp-Cell")
        page.locator(f"{SCREEN} img").wait_for()
        before = cells.count()
        # in JupyterLab's command mode: move, move, delete the cell, insert one
        press_and_look(page, "ArrowDown", "ArrowUp", "d", "d", "a")
        assert cells.count() == before
