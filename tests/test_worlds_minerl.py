"MineRL's adapter in a stand-in for MineRL: what is wrong comes as one line that names it"

import importlib.util
import sys
import types

import numpy as np
import pytest

from dreamer4_nb.data.actions import ActionSpace
from dreamer4_nb.worlds.crafter import make_world
from dreamer4_nb.worlds.minerl import MineRLWorld, complete_action

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
