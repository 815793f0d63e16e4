"Checks of recordings where the camera turns: aligned ones pass, shifted ones fail."

import json

import numpy as np
import pytest

from dreamer4_nb.run.checks import check_path
from dreamer4_nb.worlds.record import record

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root = tmp_path_factory.mktemp("first_person")
    record(root, "treechop", episodes=16, progress=False)
    return root


def statuses(root):
    return {check.name: check.status for check in check_path(root)}


def shift(root, prefix, steps):
    "Write each episode again with the columns of a prefix moved by some steps."
    for path in root.glob("*/v3_*/rendered.npz"):
        with np.load(path) as data:
            arrays = dict(data)
        for name, values in arrays.items():
            if name.startswith(prefix):
                arrays[name] = np.roll(values, steps, 0)
        np.savez_compressed(path, **arrays)
        about = path.with_name("metadata.json")
        metadata = json.loads(about.read_text())
        metadata.pop("crc32", None)  # the change is wanted
        about.write_text(json.dumps(metadata))


def test_recordings_as_played(recordings):
    status = statuses(recordings)
    assert status["actions fit the frames"] == "pass"
    assert status["rewards fit the frames"] == "pass"


@pytest.mark.parametrize("steps", [-1, 1])
def test_shifted_actions_fail(recordings, steps):
    shift(recordings, "action", steps)
    assert statuses(recordings)["actions fit the frames"] == "fail"
    shift(recordings, "action", -steps)
