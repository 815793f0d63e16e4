"""MineRL's own Python part, where `make minerl-env` has installed it: its spaces against ours,
and its reader on recordings that we wrote"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dreamer4_nb.data.actions import MINERL_CHOICES, ActionCodec, ActionSpace
from dreamer4_nb.data.convert import convert
from dreamer4_nb.data.dataset import Recordings
from dreamer4_nb.data.recordings import write_episode
from dreamer4_nb.data.windows import SequenceSampler

python = Path(__file__).resolve().parent.parent / ".venv-minerl" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not (python.parent.parent / ".installed").exists(), reason="needs `make minerl-env`"
)
TASK = "MineRLTreechop-v0"


def ask(script, *args):
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout.splitlines()[-1] if done.stdout else ""


SPACES = """
import json
import minerl.herobraine.envs as envs

spaces = {}
for spec in envs.ENV_SPECS:
    if "action_space" not in dir(spec):
        continue
    spaces[spec.name] = {}
    for key, value in spec.action_space.spaces.items():
        if hasattr(value, "values"):
            spaces[spec.name][key] = sorted(map(str, value.values))
        else:
            spaces[spec.name][key] = list(map(int, value.shape))
print(json.dumps(spaces))
"""


def test_action_spaces_are_those_of_herobraine():
    theirs = json.loads(ask(SPACES))
    compared = 0
    for task in MINERL_CHOICES:
        name = f"MineRL{task}-v0"
        if name not in theirs:
            continue
        space = ActionSpace.minerl(name)
        ours = {key: [] for key in space.keys} | {"camera": [2]}
        ours |= {key: sorted(options) for key, options in space.choices.items()}
        assert theirs[name] == ours
        compared += 1
    assert compared >= 6


@pytest.fixture
def recorded(tmp_path):
    "Two recordings whose frames, keys and camera differ at every step"
    rng = np.random.default_rng(0)
    codec = ActionCodec(ActionSpace.minerl(TASK))
    for name, steps in (("first", 41), ("second", 33)):
        small = rng.integers(0, 256, (steps + 1, 8, 8, 3), dtype=np.uint8)
        frames = np.repeat(small, 8, 1).repeat(8, 2)
        actions = np.stack([rng.integers(0, n, steps) for n in codec.sizes], 1)
        write_episode(
            tmp_path,
            TASK,
            f"{name}_oak_fox-1_0-{steps}",
            frames,
            codec.decode(actions),
            (rng.random(steps) < 0.2).astype(np.float32),
        )
    (tmp_path / "VERSION").write_text("4")
    return tmp_path


READ = """
import sys

import minerl.data
import numpy as np

task, source, target = sys.argv[1:]
data = minerl.data.make(task, data_dir=source, num_workers=1)
arrays = {}
for name in data.get_trajectory_names():
    steps = list(data.load_data(name))
    frames = [step[0]["pov"] for step in steps] + [steps[-1][3]["pov"]]
    arrays[f"{name}/pov"] = np.stack(frames)
    arrays[f"{name}/reward"] = np.array([step[2] for step in steps], np.float32)
    for key in steps[0][1]:
        arrays[f"{name}/{key}"] = np.stack([step[1][key] for step in steps])
batches = data.batch_iter(batch_size=1, seq_len=8, num_epochs=1)
for i, (observation, action, reward, after, done) in enumerate(batches):
    arrays[f"batch{i}/pov"] = observation["pov"][0]
    arrays[f"batch{i}/attack"] = action["attack"][0]
    arrays[f"batch{i}/reward"] = reward[0]
np.savez(target, **arrays)
"""


@pytest.fixture
def both(recorded):
    "What MineRL's reader and ours find in the same recordings"
    ask(READ, TASK, recorded, recorded / "theirs.npz")
    with np.load(recorded / "theirs.npz", allow_pickle=False) as z:
        theirs = {k: z[k] for k in z.files}
    convert(recorded / TASK, recorded / "converted", progress=False)
    return theirs, Recordings(recorded / "converted")


def test_its_reader_finds_in_our_recordings_what_we_wrote(both):
    theirs, ours = both
    for i, name in enumerate(ours.names):
        frames = ours.frames(i).transpose(0, 2, 3, 1)
        pov = theirs[f"{name}/pov"]
        # it may leave out a last step, and shows the last frame but one twice
        n = len(pov) - 1
        assert n >= int(ours.steps[i]) - 1
        assert (pov[:n] == frames[:n]).all()
        assert (theirs[f"{name}/reward"] == ours.rewards(i)[:n]).all()
        actions = {key: theirs[f"{name}/{key}"] for key in ours.action_space.names}
        assert (ours.codec.encode(actions) == ours.actions(i)[:n]).all()


def find_step(ours, frame):
    "Recording and step of a frame (C, H, W)"
    for i in range(2):
        for t in range(int(ours.steps[i]) + 1):
            if (ours.frames(i)[t] == frame).all():
                return i, t
    raise AssertionError("no such frame")


def test_its_batches_hold_what_was_done_in_a_frame(both):
    "They run on from one recording into the next, which ours never do"
    theirs, ours = both
    batches = {key.split("/")[0] for key in theirs if key.startswith("batch")}
    assert len(batches) >= 8
    for batch in batches:
        frames = theirs[f"{batch}/pov"].transpose(0, 3, 1, 2)
        attacks = theirs[f"{batch}/attack"]
        for frame, attack, reward in zip(frames, attacks, theirs[f"{batch}/reward"]):
            i, t = find_step(ours, frame)
            assert ours.actions(i)[t, 0] == attack
            assert ours.rewards(i)[t] == reward


def test_our_batches_hold_what_led_to_a_frame(both):
    _, ours = both
    batch = SequenceSampler(ours, 2, 8, horizon=1, relevant_fraction=0, seed=0).batch(0)
    for step in range(1, 8):
        i, t = find_step(ours, batch.frames[0, step].numpy())
        assert (ours.actions(i)[t - 1] == batch.actions[0, step].numpy()).all()
        assert ours.rewards(i)[t - 1] == batch.rewards[0, step]
