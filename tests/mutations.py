"""Files damaged at random, and what their readers do with them.

`python mutations.py KIND COUNT SEED FOLDER` prints the counts as JSON.

Every mutation ends in one of three ways: the reader reports the file in one line that names
it, it reads what was there before, or it reads something else, which nobody can notice where
the format has no redundancy. Anything else (another kind of error, a message without a name of
the file, silence for a minute) is a bug of the reader and is raised here with the seed that
brings it back."""

import json
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from test_recordings import SPACE, make
from test_videos import write_segment
from training_job import learner

from dreamer4_nb import config as configs
from dreamer4_nb.data.convert import convert, convert_one
from dreamer4_nb.data.dataset import LatentStore, Recordings
from dreamer4_nb.data.recordings import read_episode
from dreamer4_nb.data.vpt import read_segment
from dreamer4_nb.files import RecordingError
from dreamer4_nb.run.run import STAGES, Run
from dreamer4_nb.training.callbacks import read_training_log
from dreamer4_nb.training.checkpoint import model_tensors

# --- damage: functions of a random generator and good bytes

STRANGE = [
    *(None, True, "x", "", -1, 0, 1.5, 1e300, float("nan"), 10**30),
    *([], {}, [[1]], {"x": 1}, ["x"]),
]


def damage_value(rng, value):
    "Replace, remove or add one value somewhere in the content of a JSON file"
    is_container = isinstance(value, (dict, list)) and value
    if is_container and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[rng.integers(len(keys))]
        if rng.random() < 0.2:
            del value[key]
        else:
            value[key] = damage_value(rng, value[key])
        return value
    if isinstance(value, dict) and rng.random() < 0.3:
        return value | {"unknown": 1}
    return STRANGE[rng.integers(len(STRANGE))]


def cut_off(rng, good):
    return good[: rng.integers(len(good))]


def overwrite_bytes(rng, good):
    damaged = bytearray(good)
    for i in rng.integers(len(good), size=rng.integers(1, 4)):
        damaged[i] = rng.integers(256)
    return bytes(damaged)


def flip_bit(rng, good):
    damaged = bytearray(good)
    damaged[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def overwrite_block(rng, good):
    start = int(rng.integers(len(good)))
    end = min(start + 64, len(good))
    block = bytes(end - start) if rng.random() < 0.5 else rng.bytes(end - start)
    return good[:start] + block + good[end:]


def insert_or_remove(rng, good):
    start = int(rng.integers(len(good)))
    end = start + int(rng.integers(0, 9))
    return good[:start] + rng.bytes(rng.integers(1, 9)) + good[end:]


BYTE_DAMAGES = [cut_off, overwrite_bytes, flip_bit, overwrite_block, insert_or_remove]


def damage_bytes(rng, good):
    return BYTE_DAMAGES[rng.integers(len(BYTE_DAMAGES))](rng, good)


def damage_json(rng, good):
    if rng.random() < 0.4:
        return damage_bytes(rng, good)
    return json.dumps(damage_value(rng, json.loads(good))).encode()


def damage_lines(rng, good):
    lines = good.splitlines()
    i = int(rng.integers(len(lines)))
    lines[i] = damage_json(rng, lines[i])
    return b"\n".join(lines) + b"\n"


def split_safetensors(good):
    "Header and body: the file begins with the length of a JSON header"
    (length,) = struct.unpack("<Q", good[:8])
    return good[: 8 + length], good[8 + length :]


def damage_header(rng, good):
    header, body = split_safetensors(good)
    if rng.random() < 0.5:
        return damage_bytes(rng, header) + body
    changed = json.dumps(damage_value(rng, json.loads(header[8:]))).encode()
    return struct.pack("<Q", len(changed)) + changed + body


def damage_body(rng, good):
    header, body = split_safetensors(good)
    return header + damage_bytes(rng, body)


# --- readers: functions of a folder


def same(a, b):
    "Equal to the last bit, and of the same kind"
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    both_nan = a != a and b != b
    return a == b or both_nan


def content(episode):
    labels = [episode.actions, episode.rewards, episode.terminated, episode.observations]
    return [episode.frames, *labels]


def read_recording(folder):
    "What is learned from one recording; `convert` must accept or reject the same"
    episode = content(read_episode(folder))
    target = folder.parent.parent / "converted"
    shutil.rmtree(target, ignore_errors=True)
    line = convert_one(folder, target, SPACE.to_dict(), (64, 64))
    if line["status"] == "set aside":
        raise RecordingError(line["reason"])
    return episode


def read_vpt(folder):
    return content(read_segment(folder / "a.mp4", event="mine_log"))


def read_converted(root):
    data = Recordings(root)
    if len(data):
        data.split()
    episodes = []
    for i, name in enumerate(data.names):
        labels = [data.actions(i), data.rewards(i), data.terminated(i)]
        episodes.append([np.array(data.frames(i)), *labels, name])
    return episodes + [data.codec and data.codec.sizes]


def read_latents(root):
    return np.array(LatentStore(root)["a"])


def read_config(folder):
    return configs.load_config(folder / "config.json")


def read_run(folder):
    run = Run(folder, progress=False)
    return [run.config, [run.done(stage) for stage in STAGES], run.seed]


def read_checkpoint(out):
    "All that a resumed run begins with"
    job = learner(out, 10)
    job.load()
    moments = [list(map(dict, optimizer.state.values())) for optimizer in job.optimizers]
    state = [
        *(model_tensors(job.model), moments, job.average.tensors, job.average.count),
        *(job.step, job.seed, job.batches.state_dict(), job.normalizer.state_dict()),
        job.stopped,
    ]
    return deepcopy(state)  # since tensors may be maps of the file


def read_log(out):
    learner(out, 10).load()
    learner(out, 5).fit(resume=True)
    return [row["step"] for row in read_training_log(out)]


# --- makers: write good files below a folder and return the folder that the reader gets


def make_recording(folder):
    "A recording of smooth pictures, which compress as films do"
    y, x = np.mgrid[:64, :64]
    frames = []
    for t in range(13):
        red = 128 + 100 * np.sin((x + 3 * t) / 9)
        green = 128 + 100 * np.cos((y - 2 * t) / 7)
        blue = (x + y + 4 * t) % 256
        frames.append(np.stack([red, green, blue], -1).astype(np.uint8))
    observations = {"inventory$log": np.arange(13)}
    return make(folder / "films", "a", frames=np.stack(frames), observations=observations)


def make_vpt(folder):
    return write_segment(folder / "vpt").parent


def make_converted(folder):
    for i in range(3):
        make(folder / "source", f"{i}", seed=i)
    convert(folder / "source", folder / "data", progress=False)
    return folder / "data"


def make_latents(folder):
    latents = np.random.default_rng(0).random((13, 4, 8), np.float32)
    LatentStore.write(folder / "latents", "a", latents)
    return folder / "latents"


def make_config(folder):
    (folder / "config").mkdir(exist_ok=True)
    configs.named("laptop").save(folder / "config" / "config.json")
    return folder / "config"


def make_run(folder):
    return Run(folder / "run", configs.named("smoke"), progress=False).out


def make_trained(folder):
    learner(folder / "trained", 5, log_every=1).fit(resume=True)
    return folder / "trained"


@dataclass
class Kind:
    make: Callable  # folder -> folder for the reader
    file: str  # in that folder, to be damaged
    read: Callable  # of that folder
    damage: Callable  # (rng, bytes) -> bytes


KINDS = {
    "mp4": Kind(make_recording, "recording.mp4", read_recording, damage_bytes),
    "npz": Kind(make_recording, "rendered.npz", read_recording, damage_bytes),
    "metadata.json": Kind(make_recording, "metadata.json", read_recording, damage_json),
    "VPT mp4": Kind(make_vpt, "a.mp4", read_vpt, damage_bytes),
    "VPT jsonl": Kind(make_vpt, "a.jsonl", read_vpt, damage_lines),
    "dataset.json": Kind(make_converted, "dataset.json", read_converted, damage_json),
    "latents.npy": Kind(make_latents, "a.npy", read_latents, damage_bytes),
    "config.json": Kind(make_config, "config.json", read_config, damage_json),
    "run.json": Kind(make_run, "run.json", read_run, damage_json),
    "state.json": Kind(make_trained, "checkpoint/state.json", read_checkpoint, damage_json),
    "log.jsonl": Kind(make_trained, "log.jsonl", read_log, damage_lines),
}
for name in ("frames", "actions", "rewards"):
    file = f"episodes/v3_1/{name}.npy"
    KINDS[f"{name}.npy"] = Kind(make_converted, file, read_converted, damage_bytes)
for name in ("model", "optimizer", "ema"):
    file = f"checkpoint/{name}.safetensors"
    KINDS[f"{name} header"] = Kind(make_trained, file, read_checkpoint, damage_header)
    KINDS[f"{name} tensors"] = Kind(make_trained, file, read_checkpoint, damage_body)

# --- the survey


class TooSlow(BaseException):
    "Not an error that a reader could swallow"


@contextmanager
def at_most(seconds):
    def stop(*_):
        raise TooSlow

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def is_good_error(error, path):
    "One line that names the file"
    text = str(error)
    is_expected = isinstance(error, (ValueError, OSError))
    is_raw = isinstance(error, UnicodeError)
    return is_expected and not is_raw and "\n" not in text and path.name in text


def judge(kind, root, path, whole):
    "What a reader makes of a damaged file: 'rejected', 'same' or 'other'"
    try:
        with at_most(60):
            content = kind.read(root)
    except BaseException as error:
        if is_good_error(error, path):
            return "rejected"
        raise
    return "same" if same(whole, content) else "other"


def survey(name, count, seed, folder):
    "Counts of what happened to `count` mutations of one kind"
    kind = KINDS[name]
    root = kind.make(Path(folder))
    path = root / kind.file
    good = path.read_bytes()
    whole = kind.read(root)
    counts = dict(rejected=0, same=0, other=0)
    for i in range(count):
        path.write_bytes(kind.damage(np.random.default_rng([seed, i]), good))
        try:
            counts[judge(kind, root, path, whole)] += 1
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{name}, seed {seed}, mutation {i}: {problem}") from error
    path.write_bytes(good)
    changed = f"{name}: the reader or the damage has changed other files"
    assert same(whole, kind.read(root)), changed
    return counts


if __name__ == "__main__":
    print(json.dumps(survey(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
