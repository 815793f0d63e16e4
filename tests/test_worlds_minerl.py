"MineRL's adapter in a stand-in for MineRL: what is wrong comes as one line that names it"

import importlib.util
import sys
import types

import numpy as np
import pytest

from dreamer4_nb.config import named
from dreamer4_nb.data.actions import ActionSpace
from dreamer4_nb.pipeline import evaluate, train
from dreamer4_nb.run.run import RunError
from dreamer4_nb.worlds.minerl import MineRLWorld, complete_action
from dreamer4_nb.worlds.record import record
from dreamer4_nb.worlds.registry import find_task, make_world

TASK = "MineRLObtainDiamond-v0"


class StandIn:
    "MineRL 0.4.4 as seen from outside; nothing ever ends."

    def __init__(self, env_id):
        self.closed = False

    def seed(self, seed):
        pass

    def reset(self):
        return dict(pov=np.zeros((64, 64, 3), np.uint8))

    def step(self, action):
        return self.reset(), 0.0, False, {}

    def close(self):
        self.closed = True


class NoJava(StandIn):
    def reset(self):
        raise FileNotFoundError("gradlew")


def install(monkeypatch, make):
    gym = types.ModuleType("gym")
    gym.make = make
    monkeypatch.setitem(sys.modules, "minerl", types.ModuleType("minerl"))
    monkeypatch.setitem(sys.modules, "gym", gym)


@pytest.mark.parametrize(
    "action, message",
    [
        (dict(craft="cake"), "craft='cake' is not one of"),
        (dict(craft=99), "craft=99 is not"),
        (dict(craft=-1), "craft=-1 is not"),
        (dict(attack=0.7), "a key is 0 or 1"),
        (dict(camera=(1, np.nan)), "two finite numbers"),
        (dict(camera=3.0), "two finite numbers"),
        (dict(fly=1), r"\['fly'\] unknown in MineRLObtainDiamond-v0"),
    ],
)
def test_wrong_actions(action, message):
    with pytest.raises(ValueError, match=message):
        complete_action(action, ActionSpace.minerl(TASK), TASK)


def test_camera_is_clipped_and_choices_have_names():
    action = complete_action(dict(camera=(300, -300), craft=1), ActionSpace.minerl(TASK), TASK)
    assert action["camera"].tolist() == [180, -180]
    assert isinstance(action["craft"], str)


def test_obfuscated_worlds():
    with pytest.raises(ValueError, match="obfuscated worlds .* Hint: use MineRLTreechop-v0"):
        make_world("MineRLTreechopVectorObf-v0")


def test_unknown_worlds():
    with pytest.raises(ValueError, match="not a known MineRL task"):
        make_world("MineRLFly-v0")


@pytest.mark.skipif(importlib.util.find_spec("minerl") is not None, reason="minerl is here")
def test_no_minerl():
    with pytest.raises(ImportError, match=r"not usable here \(ModuleNotFoundError"):
        make_world("MineRLTreechop-v0")


def test_another_gym_that_fails(monkeypatch):
    def make(env_id):
        raise IndexError("no such world")

    install(monkeypatch, make)
    with pytest.raises(ImportError, match=r"not usable here \(IndexError: no such world\)"):
        make_world("MineRLTreechop-v0")


def test_no_java(monkeypatch):
    install(monkeypatch, NoJava)
    world = MineRLWorld(TASK)
    with pytest.raises(ImportError, match="the Java part of MineRL may be missing"):
        world.reset()


def test_a_world_that_has_opened_shows_its_own_error(monkeypatch):
    install(monkeypatch, StandIn)
    world = MineRLWorld(TASK)
    world.reset()
    world._env.reset = NoJava(TASK).reset
    with pytest.raises(FileNotFoundError):
        world.reset()


def test_close(monkeypatch):
    install(monkeypatch, StandIn)
    world = MineRLWorld(TASK)
    world.close()
    assert world._env.closed


class ShortGame(StandIn):
    "Pays for attack, and time is up after ten steps."

    def reset(self):
        self.steps = 0
        return super().reset()

    def step(self, action):
        self.steps += 1
        observation = dict(pov=np.full((64, 64, 3), 9 * self.steps, np.uint8))
        info = {"TimeLimit.truncated": True} if self.steps == 10 else {}
        return observation, float(action["attack"]), self.steps == 10, info


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_whole_evaluation_in_minerls_worlds(monkeypatch, tmp_path):
    "Recordings with MineRL's actions, a trained run, and MineRL itself to play in."
    opened = []

    def make(env_id):
        opened.append(env_id)
        return ShortGame(env_id)

    install(monkeypatch, make)
    task = find_task("treechop", {"num_steps": 40})
    record(tmp_path / "recordings", task, episodes=6, progress=False, kind="collector")
    config = named("smoke").change({"data.task": "MineRLTreechop-v0"})
    run = train(config, tmp_path / "recordings", tmp_path / "run", progress=False, processes=1)
    results = evaluate(run, worlds=2, processes=1)
    assert set(opened) == {"MineRLTreechop-v0"}
    assert len(results["policies"]["bc"]["returns"]) == 2
    assert "scripted" not in results["policies"]  # nobody plays Minecraft by script here
    assert (tmp_path / "run/report.html").exists()


def test_a_world_with_other_actions_than_the_recordings(tmp_path):
    task = find_task("treechop", {"num_steps": 40})
    record(tmp_path / "recordings", task, episodes=6, progress=False, kind="collector")
    config = named("smoke").change({"data.task": "tools"})
    run = train(config, tmp_path / "recordings", tmp_path / "run", progress=False, processes=1)
    message = "actions: attack, .* but the world tools has action. Hint"
    with pytest.raises(RunError, match=message):
        evaluate(run, worlds=2, processes=1)
