"The alignment check on real first-person video, where that is at hand."

from pathlib import Path

import numpy as np
import pytest
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.dataset import MemoryRecordings
from dreamer4_nb.run.checks import check_alignment

played = Path(__file__).parents[2] / "shared/data/minetest"


@pytest.mark.skipif(
    not played.is_dir(), reason="the Minetest recordings of ../shared are not here"
)
@pytest.mark.parametrize("shift, status", [(0, "pass"), (1, "fail")])
def test_alignment_of_keys_and_mouse(shift, status):
    space, frames, actions = (
        ActionSpace(
            keys=("forward", "back", "left", "right", "jump", "attack"), camera="camera"
        ),
        [],
        [],
    )
    codec = ActionCodec(space)
    for seed in ("seed3", "seed7"):
        with np.load(played / seed / "episode.npz", allow_pickle=False) as e:
            camera = 0.1 * np.stack([e["dy"], e["dx"]], -1).astype(float)
            a = np.asarray(codec.encode({k: e[k] for k in space.keys} | dict(camera=camera)))
            for s in range(0, 3000, 300):
                frames.append(e["frames"][s : s + 301].transpose(0, 3, 1, 2))
                actions.append(np.roll(a[s : s + 300], shift, 0))
    found = next(
        check_alignment(MemoryRecordings(frames, actions, [None] * len(frames), codec=codec))
    )
    assert found.name == "actions fit the frames" and found.status == status, found
