"Worlds are the same in every process, whatever the hash seed and the memory addresses."

import os
import subprocess
import sys

import pytest

pytest.importorskip("crafter")

CODE = """
import hashlib, sys
from dreamer4_nb.worlds.crafter import make_world
from dreamer4_nb.worlds.players import draw_player, play_episode, expert
import numpy as np
digest, junk = hashlib.sha256(), [object() for _ in range(int(sys.argv[1]))]
for task, view in (('collect_wood', 'grid'), ('tools', 'grid'), ('tools', 'stock')):
    for seed in range(2):
        player = draw_player(task, np.random.default_rng(seed)) if seed else expert(task)
        frames, actions, rewards, terminated, info = play_episode(make_world(task, view), player, seed)
        for array in (frames, actions, rewards): digest.update(array.tobytes())
        digest.update(repr((terminated, sorted(info['achievements'].items()))).encode())
print(digest.hexdigest())
"""


def run(hash_seed, junk):
    env = dict(os.environ, PYTHONHASHSEED=str(hash_seed), OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, "-c", CODE, str(junk)],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    ).stdout


def test_same_in_every_process():
    first = run(1, 10)
    assert len(first.strip()) == 64
    assert first == run(2, 54321)
