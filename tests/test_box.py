"The trained run in the package: small, whole, in step with the code, and as good as it says"

import json

import numpy as np
import pytest
import torch
from dreamer4_nb.files import verify_checksum
from dreamer4_nb.play.player import Player
from dreamer4_nb.run.load import PRETRAINED, load
from dreamer4_nb.run.run import POLICIES, Run
from dreamer4_nb.training.checkpoint import read_tensors
from dreamer4_nb.UNKNOWN import psnr
from test_cli import call, refused

files = [p for p in PRETRAINED.rglob("*") if p.is_file()]
size = lambda some: sum(p.stat().st_size for p in some)
db = lambda a, b: psnr(
    torch.from_numpy(np.array(a)) / 255, torch.from_numpy(np.array(b)) / 255
)


@pytest.fixture(scope="module")
def player():
    return Player("pretrained")


def test_size_and_kinds():
    assert size(files) <= 10e6 and size(p for p in files if p.suffix == ".npy") <= 2e6
    assert {p.suffix for p in files} == {".json", ".npy", ".safetensors"}


def test_it_says_where_it_comes_from():
    said = json.loads((PRETRAINED / "run.json").read_text())
    assert (
        verify_checksum(said)
        and len(said["box"]["commit"]) == 40
        and (said["size"], said["task"], said["seed"]) == ("laptop", "collect_wood", 0)
    )
    assert (
        all(
            said["stages"][s]["minutes"] > 0
            for s in ("tokenizer", "dynamics", "agent", "imagination")
        )
        and said["machine"]["cores"]
    )
    for name in ("tokenizer_psnr", "dream_psnr"):
        assert abs(said["box"]["rounded"][name] - said["box"]["measured"][name]) < 0.1


def test_every_tensor_has_its_place():
    "`fill` refuses missing, unknown and misshaped tensors"
    run = Run(PRETRAINED, progress=False)
    agent = run.trained("agent")
    for name in (*POLICIES, "value"):
        run.policy(name, agent)
    for path in PRETRAINED.rglob("*.safetensors"):
        tensors = read_tensors(path)
        assert all(v.isfinite().all() for v in tensors.values()) and any(
            v.dtype == torch.float16 for v in tensors.values()
        )


def test_frames_go_through_the_tokenizer(player):
    for i in range(len(player.recordings)):
        frames = np.array(player.recordings.frames(i))
        with torch.no_grad():
            z = player.tokenizer.encode(torch.from_numpy(frames)[None])
            made = player.tokenizer.decode(z)[0].clamp(0, 1)
        assert psnr(made, torch.from_numpy(frames) / 255) > 36
        assert (
            np.abs(z[0].numpy() - player.latents[player.recordings.names[i]]).max() < 0.02
        ), "the latents beside the frames are those of another tokenizer"


def test_dreams_follow_the_truth(player):
    "The first steps, under the recorded actions, against the frames that they should show, and against no change"
    dreamed, shown, begun, paid = [], [], [], []
    for i in range(len(player.recordings)):
        frames, actions, rewards = (
            player.recordings.frames(i),
            player.recordings.actions(i),
            player.recordings.rewards(i),
        )
        for start in (8, 12, 16):
            player.reset(i, start)
            steps = [player.step(a) for a in actions[start : start + 3]]
            dreamed += [m.frame for m in steps]
            shown += list(frames[start + 1 : start + 4])
            begun += [frames[start]] * 3
            paid += [(m.reward > 0.5) == (r > 0.5) for m, r in zip(steps, rewards[start:])]
    dream, still = db(dreamed, shown), db(begun, shown)
    assert dream > 22 and dream > still + 4, (dream, still)
    assert np.mean(paid) > 0.9, "rewards are predicted on arriving"


def test_it_acts(player):
    pilot = load("pretrained", temperature=0)
    said = [pilot.act(np.array(f))["action"] for f in player.recordings.frames(0)]
    assert len(set(said)) > 1 and set(said) <= set(player.moves)


def test_the_command_wants_one_run(tmp_path):
    refused(call("play"), "--pretrained", code=2)
    refused(call("play", tmp_path, "--pretrained"), "not both", code=2)
