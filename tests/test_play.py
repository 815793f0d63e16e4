"""Players and their errors, the command `dreamer4 play`, the panel in a real browser

JupyterLab and Voila serve it; both must let it have its keys.
"""

import io
import json
import shutil
import signal
import socket
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from page import CHROMIUM, browser, lab, measure, voila, voila_server
from PIL import Image
from test_cli import assert_error, assert_usage, call_here

from dreamer4_nb.config import named
from dreamer4_nb.pipeline import run_all
from dreamer4_nb.play.dream_env import DreamEnv
from dreamer4_nb.play.explorer import Explorer
from dreamer4_nb.play.film import dream_film
from dreamer4_nb.play.panel import Controls, free_port, page_notebook
from dreamer4_nb.play.player import Player, save_recording, step_picture
from dreamer4_nb.run.folder import RunError
from dreamer4_nb.run.load import load
from dreamer4_nb.run.run import Run
from dreamer4_nb.worlds.record import record
from dreamer4_nb.worlds.registry import find_task
from dreamer4_nb.worlds.voxel import YAW

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="no Chromium or no playwright: apt-get install chromium, pip install playwright",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play") / "run"
    run_all(Run(folder, named("smoke"), progress=False), "imagination")
    return folder


def short_run(folder, task, changes=None, **options):
    "A run that has learned nothing from six short recordings of a task"
    registered = find_task(task)
    short = replace(registered, options=registered.options | {"num_steps": 40} | options)
    record(folder / "recorded", short, 6, progress=False)
    run = Run(folder / "run", named("smoke").change(changes or {}), progress=False)
    run.use_recordings(folder / "recorded")
    run_all(run, "imagination")
    return run.out


@pytest.fixture(scope="module")
def keys_run(tmp_path_factory):
    "Keys, a camera and choices"
    return short_run(tmp_path_factory.mktemp("keys"), "pickaxe")


@pytest.fixture(scope="module")
def observing_run(tmp_path_factory):
    "A compass beside the picture"
    changes = {"data.task": "navigate", "data.observations": ("compass$angle",)}
    return short_run(tmp_path_factory.mktemp("observing"), "navigate", changes)


@pytest.fixture(scope="module")
def player(run):
    return Player(run)


@pytest.fixture(scope="module")
def keys_player(keys_run):
    return Player(keys_run)


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture
def keys_copy(keys_run, tmp_path):
    return Path(shutil.copytree(keys_run, tmp_path / "keys_copy"))


def change_metadata(run, change):
    "In the first recording of a run; None takes a value away"
    path = next((run / "converted" / "episodes").glob("*_00000")) / "info.json"
    info = json.loads(path.read_text())
    metadata = info["metadata"] | change
    info["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    path.write_text(json.dumps(info))


# what is observed beside the picture


def test_a_trained_policy_reads_what_it_has_learned_to_read(observing_run, tmp_path):
    policy = load(observing_run)
    assert policy.actor.agent.dynamics.extra_tokens == 1
    world = policy.run.worlds(1).worlds[0]
    observation, _ = world.reset(seed=0)
    for _ in range(3):
        action = policy.act(world.frame(), world.observations())
        world.step(world.action_of(action))
    frame = world.frame()
    for wrong in (None, {}, {"compass": 3.0}):
        with pytest.raises(ValueError, match="observations: compass.angle missing.*Hint"):
            policy.act(frame, wrong)
    with pytest.raises(ValueError, match="observation 'compass.angle': .*Hint"):
        policy.act(frame, {"compass$angle": [1.0, 2.0]})
    with pytest.raises(ValueError, match="frame: a dictionary of pov, .*Hint: give world.fra"):
        policy.act(observation)


def test_a_saved_policy_reads_it_still_and_its_card_says_so(observing_run, tmp_path):
    policy = load(observing_run)
    policy.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "policy.act(frame, observations)" in card and "`compass$angle`" in card
    again = load(tmp_path / "saved")
    frame = Player(observing_run).history[0].true_frame

    def features(policy, angle):
        policy.reset()
        policy.actor.generator.manual_seed(0)
        policy.act(frame, {"compass$angle": angle})
        return policy.actor.dream.cache.layers[1]

    east = features(policy, 90)
    assert torch.allclose(features(again, 90), east, atol=1e-4)
    assert not torch.allclose(features(again, -90), east, atol=1e-2)


def test_a_dream_begins_with_what_was_observed(observing_run):
    player = Player(observing_run).reset(0, 9)
    recorded = player.latents[player.recordings.names[0]][9]
    assert player.agent.dynamics.latent_shape == recorded.shape
    played = player.step({"forward": 1})
    assert played.frame.shape == (3, 64, 64) and played.true_frame is not None
    assert player.play("imagination").action is not None
    assert player.step_back()
    env = DreamEnv(observing_run, num_steps=3, observation="latents")
    assert env.reset(seed=0)[0].shape == recorded.shape
    assert env.step(env.action_space.sample())[0].shape == recorded.shape


def test_a_picture_of_ones_own_comes_with_what_was_observed(observing_run, tmp_path):
    player = Player(observing_run)
    frame = player.history[0].true_frame

    def newest(observations):
        player.begin_at(frame, observations)
        return player.dream.cache.last, player.features

    for east, other in zip(newest({"compass$angle": 90}), newest({"compass$angle": -90})):
        assert east is None or not torch.allclose(east, other)
    assert player.step({"forward": 1}).frame.shape == (3, 64, 64)
    with pytest.raises(ValueError, match="'compass' is not read by this run. Did you mean"):
        player.begin_at(frame, {"compass": 90})
    film = dream_film(frame, "forward", tmp_path / "film.gif", observing_run)
    assert "compass$angle not given: the dream begins as if unobserved" in film.notes


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
    change_metadata(copy, change)
    player = Player(copy)
    played = player.step("left")
    assert word in player.why_no_world
    assert played.true_frame is None and played.true_reward is None
    assert step_picture(played).shape == (256, 256, 3)
    assert player.step_back() and not player.step_back()
    with pytest.raises(ValueError, match=word):
        save_recording(player, copy / "played", truth=True)
    assert player.reset(1).why_no_world == ""


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(task=None), "names no seed"),
        (dict(task="collect_wood", view="grid"), "not those of task collect_wood"),
        (dict(world_options={"action_repeat": 3}), "looks different"),
    ],
)
def test_a_world_of_keys_that_does_not_fit(keys_copy, change, word):
    change_metadata(keys_copy, change)
    player = Player(keys_copy).reset(0, 20)
    assert word in player.why_no_world
    assert player.step({"forward": 1}).true_frame is None
    assert player.reset(1, 20).why_no_world == ""


def test_the_world_is_made_as_it_was_recorded(tmp_path):
    "Not as the task has it today"
    player = Player(short_run(tmp_path, "treechop", action_repeat=3))
    recorded, _ = player.replay_recording(1, 5, 20)
    assert player.world.action_repeat == 3
    assert (recorded == np.stack([played.true_frame for played in player.history])).all()


def test_what_is_not_named_rests(player, keys_player):
    keys_player.reset(0, 9)
    yaw, pitch = keys_player.world.player[YAW : YAW + 2]
    keys_player.step({"forward": 1, "camera": (-3, 99), "craft": "planks"})
    keys_player.step({})
    words = keys_player.describe_actions()
    assert words == ["forward, camera -3 +10, craft planks", "noop"]
    moved = keys_player.world.player[YAW : YAW + 2] - (yaw, pitch)
    assert np.allclose(moved, (10, -3.215), atol=1e-3), "a step turns ten degrees at most"
    player.reset(1, 7).step({"action": "left"})
    assert player.describe_actions() == ["left"]


@pytest.mark.parametrize("action", [{"fly": 1}, {"forward": 2}, {"craft": "boat"}])
def test_a_wrong_name_or_value_is_named(keys_player, action):
    keys_player.reset(0)
    with pytest.raises(ValueError, match=f"action '{next(iter(action))}'"):
        keys_player.step(action)
    assert len(keys_player.history) == 1


def test_a_step_back_in_a_world_of_keys(keys_player):
    keys_player.reset(2, 5)
    for turn in (4, -7, 10):
        keys_player.step({"forward": 1, "jump": 1, "camera": (0, turn)})
    before = keys_player.history[-2].true_frame
    assert keys_player.step_back()
    assert (keys_player.world.frame().transpose(2, 0, 1) == before).all()


def test_what_the_browser_says_is_read(player, keys_player):
    controls = Controls(keys_player)
    asked = controls.read({"down": ["KeyW", "KeyR", "ControlLeft", "F13"], "turn": [0, 0]})
    assert asked == {"forward": 1, "sprint": 1}
    asked = controls.read({"down": ["ArrowUp", "Mouse0"], "turn": [1, 2]})
    assert asked["attack"] == 1 and asked["camera"].tolist() == [-4, 2]
    assert controls.read({"key": "1"}) == controls.options[0]
    assert controls.read({"key": "F13"}) is None and controls.read({"drawn": 3}) is None
    assert Controls(player).read({"key": "ArrowLeft"}) == "left"
    assert not Controls(player).codes


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


def test_the_precision_of_the_agents_training(run):
    player = Player(run)
    exact = player.reset(1, 7).step("left").frame
    player.precision = "bf16"
    rounded = player.reset(1, 7).step("left").frame
    difference = np.abs(exact.astype(int) - rounded)
    assert 0 < difference.mean() < 8
    player.play("bc")
    assert player.step_back()
    assert np.isfinite(player.history[-1].reward)


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
    assert_error(call_here("play", tmp_path / "nothing"), "no run here", "--pretrained")


def test_a_port_that_cannot_be(tmp_path):
    assert_usage(call_here("play", tmp_path, "--port", 70000), "--port")


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="Hint: name another --port"):
            free_port(other.getsockname()[1])


# the browser


SCREEN = ".dreamer4-screen"


# resolves when all that has reached the browser is drawn
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def picture(page):
    "What the screen shows, once it is drawn"
    page.evaluate(SETTLED)
    screenshot = page.locator(f"{SCREEN} canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(screenshot)).convert("RGB"))


def drawn(page):
    "The number of the picture that is seen"
    return int(page.locator(SCREEN).get_attribute("data-drawn"))


def steps_taken(page):
    "The number of steps by the line of actions"
    words = page.locator(".dreamer4-strip").text_content().split()
    return int(words[0])


def wait_for_steps(page, steps):
    "Wait until so many steps are taken, or more"
    page.wait_for_function(
        f"parseInt(document.querySelector('.dreamer4-strip').textContent) >= {steps}"
    )


def reward(page):
    return page.locator('tspan[data-curve="reward"]').text_content()


def press_and_look(page, *keys):
    "Keys change the picture and move the reward; screenshots are neither empty nor equal"
    page.locator(f"{SCREEN}[data-drawn]").wait_for()
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
        assert measure(page, 4, 1, repeats=1)["steps"] > 0


def signs(page):
    "The line of actions"
    return page.locator(".dreamer4-chip").all_text_contents()


def check_keys(page):
    "Keys that are down together make one action; at rest the world waits"
    page.keyboard.down("KeyW")
    page.keyboard.down("Space")
    wait_for_steps(page, 4)
    for key in ("KeyW", "Space"):
        page.keyboard.up(key)
    steps = steps_at_rest(page)
    assert "W ␣" in signs(page) and set(signs(page)) <= {"W", "W ␣", "␣"}
    page.keyboard.press("1")
    wait_for_steps(page, steps + 1)
    assert " " not in signs(page)[-1], "an option, and nothing else"


def check_mouse(page):
    "The mouse turns the head, its button attacks"
    place = page.locator(f"{SCREEN} canvas").bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    steps = steps_at_rest(page)
    for sign, across, down in (("→", 80, 0), ("↓", 0, 80), ("←", -80, 0), ("↑", 0, -80)):
        before = steps
        before_turn = picture(page)
        page.mouse.move(x + across, y + down, steps=4)
        wait_for_steps(page, before + 1)
        steps = steps_at_rest(page)
        assert set(signs(page)[before:]) == {sign}
        half = before_turn.shape[1] // 2
        assert (picture(page)[:, half:] != before_turn[:, half:]).any(), "the true world turns"
        x, y = x + across, y + down
    page.mouse.down()
    wait_for_steps(page, steps + 3)
    page.mouse.up()
    before, steps = steps, steps_at_rest(page)
    assert set(signs(page)[before:]) == {"●"}
    page.keyboard.press("Escape")
    page.locator(f"{SCREEN}:not([data-mouse])").wait_for()
    page.mouse.move(x + 50, y)
    assert steps_at_rest(page) == steps, "the mouse was given back"


@needs_browser
def test_keys_and_mouse(keys_run, tmp_path):
    with voila(keys_run, tmp_path) as url, browser() as first:
        second = first.context.browser.new_page()
        second.set_default_timeout(300_000)
        second.add_init_script("delete Element.prototype.requestPointerLock")
        for page in (first, second):
            page.goto(url)
            page.locator(f"{SCREEN}[data-drawn]").wait_for()
            assert (
                page.locator(".dreamer4-labels").inner_text().split("\n")[-1] == "true world"
            )
            page.locator(f"{SCREEN} canvas").click()
            page.locator(f"{SCREEN}[data-mouse=taken]").wait_for()
            assert steps_at_rest(page) == 0, "the click that takes the mouse is no attack"
            if page == first:
                check_keys(page)
            check_mouse(page)
            page.close()


def hold_until(page, key, steps):
    "Hold a key until so many steps are taken"
    for _ in range(2):  # the second time is a repeat
        page.keyboard.down(key)
    wait_for_steps(page, steps)
    page.keyboard.up(key)


def steps_at_rest(page):
    "The number of steps once neither it nor the picture changes any more"
    before = None
    while (now := (steps_taken(page), drawn(page))) != before:
        before = now
        time.sleep(1)
    return steps_taken(page)


def check_held_key(page):
    "Steps and pictures follow a key that is held, and end with it; a press is one step"
    page.keyboard.press("ArrowUp")
    assert steps_at_rest(page) == 1
    before = drawn(page)
    hold_until(page, "ArrowLeft", 8)
    after_left = steps_at_rest(page)
    assert drawn(page) > before + 3
    signs = page.locator(".dreamer4-chip").all_text_contents()
    assert set(signs[1:]) == {"←"}, signs
    hold_until(page, "ArrowDown", after_left + 4)
    released = steps_at_rest(page)
    page.keyboard.press("p", delay=50)  # pauses once, however long it is held
    page.keyboard.press("p")
    for _ in range(2):
        page.keyboard.down("Backspace")
    page.get_by_text("0 steps", exact=True).wait_for()
    page.keyboard.up("Backspace")
    assert released >= after_left + 4
    assert steps_at_rest(page) == 0


def check_dropped_pictures(page):
    "A browser that draws nothing gets two pictures and no more; then it gets the newest"
    page.evaluate("""() => {
      const next = window.requestAnimationFrame.bind(window)
      window.drawings = []
      window.requestAnimationFrame = f =>
        f.name === 'draw' ? window.drawings.push(f) : next(f)
      window.draw_again = () => {
        window.requestAnimationFrame = next
        window.drawings.forEach(next)
      }
    }""")
    before = drawn(page)
    agent = page.get_by_role("button", name="let the agent play")
    agent.click()
    wait_for_steps(page, 8)
    agent.click()
    steps = steps_at_rest(page)
    assert drawn(page) == before
    page.evaluate("window.draw_again()")
    page.wait_for_function(f"document.querySelector('{SCREEN}').dataset.drawn > {before + 2}")
    assert drawn(page) == before + 3, "two were sent, and the newest"
    newest = picture(page)
    page.locator(SCREEN).click()
    for key in (".", "Backspace"):
        page.keyboard.press(key)
        steps_at_rest(page)
    assert steps_taken(page) == steps
    assert (picture(page) == newest).all(), "it was the newest"


def check_closed_page(page, process, url):
    "A page is closed while a key is down; another one plays; then the server is interrupted"
    for _ in range(2):
        page.keyboard.down("ArrowLeft")
    browser = page.context.browser
    page.close()
    other = browser.new_page()
    other.set_default_timeout(300_000)
    other.goto(url)
    press_and_look(other, "ArrowLeft", " ")
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0
    assert not any(kernel.is_running() for kernel in kernels)


@needs_browser
def test_a_held_key_a_slow_browser_and_a_closed_page(run, tmp_path):
    with voila_server(run, tmp_path) as (process, url), browser() as page:
        page.goto(url)
        page.locator(f"{SCREEN}[data-drawn]").wait_for()
        page.locator(SCREEN).click()
        check_held_key(page)
        check_dropped_pictures(page)
        check_closed_page(page, process, url)


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
        page.locator(f"{SCREEN}[data-drawn]").wait_for()
        before = cells.count()
        # in JupyterLab's command mode: move, move, delete the cell, insert one
        press_and_look(page, "ArrowDown", "ArrowUp", "d", "d", "a")
        assert cells.count() == before
