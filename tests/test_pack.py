"The trained run in the package: small, whole, in step with the code, as good as it says"

import shutil

import numpy as np
import pytest
import torch

from dreamer4_nb.data.dataset import Recordings
from dreamer4_nb.files import read_json, verify_checksum, with_checksum, write_json
from dreamer4_nb.models.tokenizer import psnr
from dreamer4_nb.play.player import Player
from dreamer4_nb.run import pack
from dreamer4_nb.run.folder import POLICIES, RunFolder
from dreamer4_nb.run.load import PRETRAINED, load
from dreamer4_nb.training.checkpoint import read_tensors

FILES = [path for path in PRETRAINED.rglob("*") if path.is_file()]


def total_size(paths):
    return sum(path.stat().st_size for path in paths)


def psnr_of_frames(frames, truth):  # lists of uint8 arrays
    x = torch.from_numpy(np.array(frames)) / 255
    y = torch.from_numpy(np.array(truth)) / 255
    return psnr(x, y)


@pytest.fixture(scope="module")
def player():
    return Player("pretrained")


def test_size_and_kinds():
    assert total_size(FILES) <= 10e6
    assert total_size(path for path in FILES if path.suffix == ".npy") <= 2e6
    assert {path.suffix for path in FILES} == {".json", ".npy", ".safetensors"}


def test_it_says_where_it_comes_from():
    state = read_json(PRETRAINED / "run.json")
    assert verify_checksum(state)
    assert len(state["box"]["commit"]) == 40
    assert (state["size"], state["task"], state["seed"]) == ("laptop", "collect_wood", 0)
    for stage in ("tokenizer", "dynamics", "agent", "imagination"):
        assert state["stages"][stage]["minutes"] > 0
    assert state["machine"]["cores"] > 0
    for name in ("tokenizer_psnr", "dream_psnr"):
        assert abs(state["box"]["rounded"][name] - state["box"]["measured"][name]) < 0.1


def test_every_tensor_fits():
    "`load_tensors` raises for tensors that are missing, unknown or of another shape"
    run = RunFolder(PRETRAINED, progress=False)
    run.trained("tokenizer")
    agent = run.trained("agent")
    for name in (*POLICIES, "value"):
        run.policy(name, agent)


@pytest.mark.parametrize("path", sorted(PRETRAINED.rglob("*.safetensors")), ids=str)
def test_weights_are_finite_and_half(path):
    tensors = read_tensors(path).values()
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert any(tensor.dtype == torch.float16 for tensor in tensors)


def test_frames_go_through_the_tokenizer(player):
    for i in range(len(player.recordings)):
        frames = np.array(player.recordings.frames(i))
        with torch.no_grad():
            latents = player.tokenizer.encode(torch.from_numpy(frames)[None])
            decoded = player.tokenizer.decode(latents)[0].clamp(0, 1)
        assert psnr(decoded, torch.from_numpy(frames) / 255) > 36
        packed = player.latents[player.recordings.names[i]]
        error = np.abs(latents[0].numpy() - packed).max()
        assert error < 0.02, "the latents beside the frames are those of another tokenizer"


def test_dreams_follow_the_truth(player):
    "The first steps under the recorded actions, against the true frames and against no change"
    dreamed = []
    true = []
    unchanged = []
    rewards_agree = []
    for i in range(len(player.recordings)):
        frames = player.recordings.frames(i)
        actions = player.recordings.actions(i)
        rewards = player.recordings.rewards(i)
        for start in (8, 12, 16):
            player.reset(i, start)
            for t in range(start, start + 3):
                step = player.step(actions[t])
                dreamed.append(step.frame)
                true.append(frames[t + 1])
                unchanged.append(frames[start])
                rewards_agree.append((step.reward > 0.5) == (rewards[t] > 0.5))
    dream = psnr_of_frames(dreamed, true)
    still = psnr_of_frames(unchanged, true)
    assert dream > 22 and dream > still + 4, (dream, still)
    assert np.mean(rewards_agree) > 0.9, "rewards are predicted on arriving"


def test_it_acts(player):
    trained = load("pretrained", temperature=0)
    frames = player.recordings.frames(0)
    actions = {trained.act(np.array(frame))["action"] for frame in frames}
    assert len(actions) > 1
    assert actions <= set(player.moves)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"out": "runs/nothing"}, ["runs/nothing", "no run here"]),
        ({"out": "pretrained", "policy": "dream"}, ["'dream'", "imagination", "bc_all"]),
        ({"out": "pretrained", "device": "nonsense"}, ["nonsense", "cpu"]),
    ],
)
def test_what_load_cannot_use_is_named_in_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()  # else `runs/nothing` is a name on the Hub
    with pytest.raises(ValueError) as error:
        load(**arguments)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "frame, words",
    [
        (np.zeros((64, 64, 3)), ["float64", "uint8"]),
        (np.zeros((32, 32, 3), np.uint8), ["(32, 32, 3)", "(3, 64, 64)"]),
        (np.zeros((64, 64), np.uint8), ["(64, 64)", "(3, 64, 64)"]),
    ],
)
def test_a_wrong_frame_is_named_in_one_line(frame, words):
    with pytest.raises(ValueError) as error:
        load("pretrained").act(frame)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.fixture
def finished(tmp_path):
    "The run of the package as a run that is not packed"
    folder = tmp_path / "run"
    shutil.copytree(PRETRAINED, folder)
    state = read_json(folder / "run.json")
    del state["box"]
    write_json(folder / "run.json", with_checksum(state))
    write_json(folder / "results.json", {"tokenizer_psnr": 39.6})
    return folder


def test_packing_that_fails_leaves_nothing(finished, tmp_path, monkeypatch):
    def fail(run, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "_measure_rounded", fail)
    with pytest.raises(OSError, match="No space left"):
        pack.pack_run(finished, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_rewards_is_packed(finished, tmp_path):
    "And with what else was observed"
    path = finished / "converted" / "dataset.json"
    dataset = read_json(path)
    for line in dataset["episodes"]:
        line["has_rewards"] = False
        folder = finished / "converted" / "episodes" / line["name"]
        (folder / "rewards.npy").unlink()
        np.save(folder / "observation.compass.npy", np.zeros(line["steps"] + 1))
    write_json(path, with_checksum(dataset))
    (tmp_path / "packed").mkdir()
    run = RunFolder(finished, progress=False)
    about = {"commit": "", "weights": "float16", "measured": {}}
    pack.write_packed(run, tmp_path / "packed", about, steps=5)
    packed = Recordings(tmp_path / "packed" / "converted")
    assert packed.rewards(0) is None
    assert packed.observations(0)["compass"].shape == (6,)
