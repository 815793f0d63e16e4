"MineRL's own Python part, where `make minerl-env` has installed it: its spaces against ours, and its reader on recordings that we wrote"

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


def test_action_spaces_are_those_of_herobraine():
    theirs = json.loads(
        ask("""
import json, minerl.herobraine.envs as envs
print(json.dumps({s.name: {k: sorted(map(str, v.values)) if hasattr(v, 'values') else list(map(int, v.shape)) for k, v in s.action_space.spaces.items()}
                  for s in envs.ENV_SPECS if 'action_space' in dir(s)}))""")
    )
    compared = 0
    for task in MINERL_CHOICES:
        name, ours = f"MineRL{task}-v0", ActionSpace.minerl(f"MineRL{task}-v0")
        if name not in theirs:
            continue
        assert theirs[name] == {
            **{k: [] for k in ours.keys},
            "camera": [2],
            **{k: sorted(o) for k, o in ours.choices.items()},
        }
        compared += 1
    assert compared >= 6


@pytest.fixture
def recorded(tmp_path):
    "Two recordings whose frames, keys and camera are told apart at every step"
    rng, codec = np.random.default_rng(0), ActionCodec(ActionSpace.minerl(TASK))
    for name, steps in (("first", 41), ("second", 33)):
        frames = np.repeat(
            rng.integers(0, 256, (steps + 1, 8, 8, 3), dtype=np.uint8), 8, 1
        ).repeat(8, 2)
        actions = codec.decode(np.stack([rng.integers(0, n, steps) for n in codec.sizes], 1))
        write_episode(
            tmp_path,
            TASK,
            f"{name}_oak_fox-1_0-{steps}",
            frames,
            actions,
            (rng.random(steps) < 0.2).astype(np.float32),
        )
    (tmp_path / "VERSION").write_text("4")
    return tmp_path


def test_its_reader_finds_in_our_recordings_what_we_wrote(recorded):
    ask(
        f"""
import sys, numpy as np, minerl.data
data, found = minerl.data.make({TASK!r}, data_dir=sys.argv[1], num_workers=1), {{}}
for name in data.get_trajectory_names():
    steps = list(data.load_data(name))
    found[f'{{name}}/pov'] = np.stack([s[0]['pov'] for s in steps] + [steps[-1][3]['pov']])
    found[f'{{name}}/reward'] = np.array([s[2] for s in steps], np.float32)
    for k in steps[0][1]: found[f'{{name}}/{{k}}'] = np.stack([s[1][k] for s in steps])
for i, (obs, act, rew, after, done) in enumerate(data.batch_iter(batch_size=1, seq_len=8, num_epochs=1)):
    found[f'batch{{i}}/pov'], found[f'batch{{i}}/attack'], found[f'batch{{i}}/reward'] = obs['pov'][0], act['attack'][0], rew[0]
np.savez(sys.argv[2], **found)""",
        recorded,
        recorded / "theirs.npz",
    )
    with np.load(recorded / "theirs.npz", allow_pickle=False) as z:
        theirs = {k: z[k] for k in z.files}
    convert(recorded / TASK, recorded / "converted", progress=False)
    ours = Recordings(recorded / "converted")
    for i, name in enumerate(ours.names):
        frames, T = ours.frames(i).transpose(0, 2, 3, 1), int(ours.steps[i])
        seen = theirs[f"{name}/pov"]
        n = (
            len(seen) - 1
        )  # it may leave out a last step, and shows the last frame but one twice
        assert n >= T - 1 and (seen[:n] == frames[:n]).all()
        assert (theirs[f"{name}/reward"] == ours.rewards(i)[:n]).all()
        did = {k: theirs[f"{name}/{k}"] for k in ours.action_space.names}
        assert (ours.codec.encode(did) == ours.actions(i)[:n]).all()
    # its batches run on from one recording into the next, which ours never do; step by step they hold what was done in a frame, not what led there
    steps = {
        ours.frames(i)[t].tobytes(): (i, t) for i in range(2) for t in range(ours.steps[i])
    }
    batches = {k.split("/")[0] for k in theirs if k.startswith("batch")}
    assert len(batches) >= 8
    for b in batches:
        for frame, attack, reward in zip(
            theirs[f"{b}/pov"].transpose(0, 3, 1, 2),
            theirs[f"{b}/attack"],
            theirs[f"{b}/reward"],
        ):
            i, t = steps[np.ascontiguousarray(frame).tobytes()]
            assert (ours.actions(i)[t, 0], ours.rewards(i)[t]) == (attack, reward)
    b = SequenceSampler(ours, 2, 8, horizon=1, relevant_fraction=0, seed=0).batch(
        0
    )  # ours: what led to a frame
    for frame, action, reward in zip(
        b["frames"].flatten(0, 1).numpy()[1:8],
        b["actions"][0, 1:8].numpy(),
        b["rewards"][0, 1:8].numpy(),
    ):
        i, t = next(
            (i, t)
            for i in range(2)
            for t in range(ours.steps[i] + 1)
            if (ours.frames(i)[t] == frame).all()
        )
        assert (ours.actions(i)[t - 1] == action).all() and ours.rewards(i)[t - 1] == reward
