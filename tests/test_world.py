"Worlds are the same in every process, whatever the hash seed and the memory addresses."

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dreamer4_nb.pipeline import configure
from dreamer4_nb.worlds.crafter import CrafterRenderer, CrafterWorld
from dreamer4_nb.worlds.players import TOOL_PLAYERS, RandomTree
from dreamer4_nb.worlds.record import record
from dreamer4_nb.worlds.registry import (
    TASKS,
    Task,
    draw_player,
    expert,
    find_task,
    make_world,
    register_task,
)
from dreamer4_nb.worlds.tasks import CRAFTER_TASKS
from dreamer4_nb.worlds.vector import VectorWorlds
from dreamer4_nb.worlds.world import PlayerKind, play_episode

pytest.importorskip("crafter")
MAP_TASKS = [name for name, task in TASKS.items() if task.world is CrafterWorld]

CODE = """
import hashlib
import sys

import numpy as np
from dreamer4_nb.worlds.registry import draw_player, expert, make_world
from dreamer4_nb.worlds.world import play_episode

digest = hashlib.sha256()
other_addresses = [object() for _ in range(int(sys.argv[1]))]
for task, view in (("collect_wood", "grid"), ("tools", "grid"), ("tools", "stock")):
    for seed in range(2):
        player = draw_player(task, np.random.default_rng(seed)) if seed else expert(task)
        episode = play_episode(make_world(task, view), player, seed)
        for array in (episode.frames, np.array(episode.actions), episode.rewards):
            digest.update(array.tobytes())
        end = (episode.terminated, sorted(episode.achievements.items()))
        digest.update(repr(end).encode())
print(digest.hexdigest())
"""


def run(hash_seed, other_objects):
    env = dict(os.environ, PYTHONHASHSEED=str(hash_seed), OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, "-c", CODE, str(other_objects)],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    ).stdout


def test_same_in_every_process():
    first = run(1, 10)
    assert len(first.strip()) == 64
    assert first == run(2, 54321)


def digest_of(episode):
    digest = hashlib.sha256()
    for array in (episode.frames, np.array(episode.actions), episode.rewards):
        digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("task", MAP_TASKS)
@pytest.mark.parametrize("view", ["grid", "stock"])
def test_a_seed_fixes_an_episode(task, view):
    first, again, other = (
        play_episode(make_world(task, view), draw_player(task, np.random.default_rng(1)), seed)
        for seed in (5, 5, 6)
    )
    assert digest_of(first) == digest_of(again) != digest_of(other)


def test_fast_frames_are_crafters():
    world = CrafterWorld("tools")
    world.reset(seed=4)
    reference = CrafterRenderer(world, (8, 6))
    rng = np.random.default_rng(0)
    for _ in range(40):
        frame, _, terminated, _, _ = world.step(int(rng.integers(17)))
        assert (frame == reference(world)).all()
        if terminated:
            break


@pytest.mark.parametrize("kind", [kind.name for kind in TOOL_PLAYERS])
def test_kinds_of_players(kind):
    player = draw_player("tools", np.random.default_rng(0), kind)
    assert player.name == kind
    world = make_world("tools", seed=0)
    world.reset()
    assert 0 <= player.act(world) < 17


@pytest.mark.parametrize("task", TASKS)
def test_everything_a_task_needs_is_in_its_record(task):
    world = make_world(task, seed=0)
    world.reset()
    assert world.frame().shape == (64, 64, 3)
    assert world.num_steps == TASKS[task].num_steps
    assert set(TASKS[task].milestones) <= set(world.achievements)
    world.step(draw_player(task, np.random.default_rng(0)).act(world))
    world.step(expert(task).act(world))
    assert world.elapsed == 2


def test_a_registered_task_has_players_and_can_be_recorded(tmp_path):
    rules = replace(CRAFTER_TASKS["collect_wood"], name="few_steps", num_steps=4)
    players = {"usual": (PlayerKind("only", 1.0, RandomTree, (0.1, 0.1)),)}
    task = Task("few_steps", CrafterWorld, 4, {"task": rules}, players=players)
    register_task(task)
    try:
        assert draw_player("few_steps", np.random.default_rng(0)).name == "only"
        (folder,) = record(tmp_path, "few_steps", episodes=1, progress=False)
        assert folder.parent.name == "CrafterFewSteps-v0"
        with pytest.raises(ValueError, match="'few_steps' has no scripted player"):
            expert("few_steps")
    finally:
        del TASKS["few_steps"]


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: find_task("collect_gold"), "'collect_gold' is unknown. Did you mean"),
        (lambda: make_world("collect_gold"), "'collect_gold' is unknown"),
        (lambda: make_world(view="side"), "view: 'side' is unknown"),
        (lambda: expert("fishing"), "'fishing' is unknown"),
        (lambda: draw_player("tools", np.random.default_rng(0), "cook"), "kind: 'cook' is"),
        (lambda: VectorWorlds(seeds=range(2)).step([1]), "1 for 2 worlds"),
    ],
)
def test_wrong_names_and_numbers(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_wrong_actions():
    world = make_world(seed=0)
    world.reset()
    with pytest.raises(ValueError, match=r"6 is not in 0\.\.5"):
        world.step(6)


@pytest.mark.parametrize("task", TASKS)
def test_the_laptops_settings_for_a_task(task):
    config = configure(task=task)
    assert config.data.task == task
    assert config.to_dict() == configure("laptop", task, config=config).to_dict()
    changed = config.to_dict() != configure().change({"data.task": task}).to_dict()
    assert changed == bool(TASKS[task].settings)
    assert configure("smoke", task).dynamics == configure("smoke").dynamics


@pytest.mark.parametrize("view", ["grid", "stock"])
def test_a_picture_is_drawn_once(view):
    "At night the stock view draws noise, which must not differ from what `step` returned"
    world = make_world(view=view)
    world.reset(seed=0)
    for _ in range(60):
        frame = world.step(0)[0]
        assert world.frame() is frame
