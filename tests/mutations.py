"""Files damaged at random, and what their readers make of them; `python mutations.py KIND COUNT SEED FOLDER` prints the counts as JSON.

Every mutation ends in one of three ways: the reader refuses the file in one line that names it, it reads what was there before, or it
reads something else, which nobody can notice where the format holds no redundancy. Anything else (another kind of error, a message that
does not name the file, silence for a minute) is a bug of the reader and is raised here with the seed that brings it back."""

import json
import shutil
import signal
import struct
import sys
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from dreamer4_nb.data.convert import convert, convert_one
from dreamer4_nb.data.dataset import LatentStore, Recordings
from dreamer4_nb.data.recordings import read_episode
from dreamer4_nb.data.vpt import read_segment
from dreamer4_nb.files import RecordingError
from dreamer4_nb.run.run import STAGES, Run
from dreamer4_nb.training.callbacks import read_training_log
from dreamer4_nb.training.checkpoint import model_tensors
from test_recordings import SPACE, make
from test_videos import write_segment
from training_job import learner

from dreamer4_nb import config as configs

# --- damage

STRANGE = [
    None,
    True,
    "x",
    "",
    -1,
    0,
    1.5,
    1e300,
    float("nan"),
    10**30,
    [],
    {},
    [[1]],
    {"x": 1},
    ["x"],
]


def spoil_value(rng, x):
    "Replace, remove or add one value somewhere in what a JSON file holds"
    if isinstance(x, (dict, list)) and x and rng.random() < 0.85:
        keys = list(x) if isinstance(x, dict) else range(len(x))
        k = keys[rng.integers(len(keys))]
        if rng.random() < 0.2:
            del x[k]
        else:
            x[k] = spoil_value(rng, x[k])
        return x
    if isinstance(x, dict) and rng.random() < 0.3:
        return x | {"unknown": 1}
    return STRANGE[rng.integers(len(STRANGE))]


def spoil_bytes(rng, good):
    "Cut off, overwrite, insert or remove bytes"
    b, how = bytearray(good), rng.integers(5)
    at = int(rng.integers(len(b)))
    if how == 0:
        return bytes(b[:at])
    if how == 1:
        for i in rng.integers(len(b), size=rng.integers(1, 4)):
            b[i] = rng.integers(256)
    elif how == 2:
        b[at] ^= 1 << int(rng.integers(8))
    elif how == 3:
        b[at : at + 64] = (
            bytes(min(64, len(b) - at))
            if rng.random() < 0.5
            else rng.bytes(min(64, len(b) - at))
        )
    else:
        b[at : at + int(rng.integers(0, 9))] = rng.bytes(rng.integers(1, 9))
    return bytes(b)


def spoil_json(rng, good):
    return (
        spoil_bytes(rng, good)
        if rng.random() < 0.4
        else json.dumps(spoil_value(rng, json.loads(good))).encode()
    )


def spoil_lines(rng, good):
    lines = good.splitlines()
    i = int(rng.integers(len(lines)))
    lines[i] = spoil_json(rng, lines[i])
    return b"\n".join(lines) + b"\n"


def spoil_header(rng, good):
    "A safetensors file begins with the length of a JSON header"
    (n,) = struct.unpack("<Q", good[:8])
    if rng.random() < 0.5:
        return spoil_bytes(rng, good[: 8 + n]) + good[8 + n :]
    header = json.dumps(spoil_value(rng, json.loads(good[8 : 8 + n]))).encode()
    return struct.pack("<Q", len(header)) + header + good[8 + n :]


def spoil_body(rng, good):
    (n,) = struct.unpack("<Q", good[:8])
    return good[: 8 + n] + spoil_bytes(rng, good[8 + n :])


# --- what is read


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
    return a == b or (a != a and b != b)


def said(e):
    return [e.frames, e.actions, e.rewards, e.terminated, e.observations]


def recorded(folder):
    "What is learned from one recording; `convert` must take or refuse the same"
    e = said(read_episode(folder))
    line = convert_one(folder, folder.parent.parent / "converted", SPACE.to_dict(), (64, 64))
    if line["status"] == "set aside":
        raise RecordingError(line["reason"])
    return e


def converted(root):
    r = Recordings(root)
    if len(r):
        r.split()
    return [
        [np.array(r.frames(i)), r.actions(i), r.rewards(i), r.terminated(i), r.names[i]]
        for i in range(len(r))
    ] + [r.codec and r.codec.sizes]


def resumed(out):
    "All that a resumed run begins with"
    l = learner(out, 10)
    l.load()
    moments = [list(map(dict, o.state.values())) for o in l.optimizers]
    return deepcopy(
        [
            model_tensors(l.model),
            moments,
            l.average.tensors,
            l.average.count,
            l.step,
            l.seed,
            l.batches.state_dict(),
            l.normalizer.state_dict(),
            l.stopped,
        ]
    )  # copied, since tensors may be maps of the file


def logged(out):
    learner(out, 10).load()
    learner(out, 5).fit(resume=True)
    return [r["step"] for r in read_training_log(out)]


# --- the files, each with its reader, and how it is damaged


def films(folder):
    "A recording of smooth pictures, which compress as films do"
    y, x = np.mgrid[:64, :64]
    frames = np.stack(
        [
            np.stack(
                [
                    128 + 100 * np.sin((x + 3 * t) / 9),
                    128 + 100 * np.cos((y - 2 * t) / 7),
                    (x + y + 4 * t) % 256,
                ],
                -1,
            )
            for t in range(13)
        ]
    ).astype(np.uint8)
    return make(folder, "a", frames=frames, observations={"inventory$log": np.arange(13)})[0]


def kinds(folder):
    "name -> (file, reader, damage); the files are made below `folder`"
    for name, file, spoil in [
        ("mp4", "recording.mp4", spoil_bytes),
        ("npz", "rendered.npz", spoil_bytes),
        ("metadata.json", "metadata.json", spoil_json),
    ]:

        def made(name=name):
            return films(folder / name)

        yield name, made, file, recorded, spoil

    def vpt():
        return write_segment(folder / "vpt").parent

    yield (
        "VPT mp4",
        vpt,
        "a.mp4",
        lambda d: said(read_segment(d / "a.mp4", event="mine_log")),
        spoil_bytes,
    )
    yield (
        "VPT jsonl",
        vpt,
        "a.jsonl",
        lambda d: said(read_segment(d / "a.mp4", event="mine_log")),
        spoil_lines,
    )

    def data():
        for i in range(3):
            make(folder / "source", f"{i}", seed=i)
        convert(folder / "source", folder / "data", progress=False)
        return folder / "data"

    yield "dataset.json", data, "dataset.json", converted, spoil_json
    for n in ("frames", "actions", "rewards"):
        yield f"{n}.npy", data, f"episodes/v3_1/{n}.npy", converted, spoil_bytes

    def latents():
        LatentStore.write(
            folder / "latents", "a", np.random.default_rng(0).random((13, 4, 8), np.float32)
        )
        return folder / "latents"

    yield "latents.npy", latents, "a.npy", lambda d: np.array(LatentStore(d)["a"]), spoil_bytes

    def config():
        (folder / "config").mkdir(exist_ok=True)
        configs.named("laptop").save(folder / "config" / "config.json")
        return folder / "config"

    yield (
        "config.json",
        config,
        "config.json",
        lambda d: configs.load_config(d / "config.json"),
        spoil_json,
    )

    def run():
        return Run(folder / "run", configs.named("smoke"), progress=False).out

    yield (
        "run.json",
        run,
        "run.json",
        lambda d: [(r := Run(d, progress=False)).config, [r.done(s) for s in STAGES], r.seed],
        spoil_json,
    )

    def trained():
        learner(folder / "trained", 5, log_every=1).fit(resume=True)
        return folder / "trained"

    yield "state.json", trained, "checkpoint/state.json", resumed, spoil_json
    for n in ("model", "optimizer", "ema"):
        yield f"{n} header", trained, f"checkpoint/{n}.safetensors", resumed, spoil_header
        yield f"{n} tensors", trained, f"checkpoint/{n}.safetensors", resumed, spoil_body
    yield "log.jsonl", trained, "log.jsonl", logged, spoil_lines


KINDS = [name for name, *_ in kinds(Path())]

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


def survey(name, count, seed, folder):
    "Counts of what happened to `count` mutations of one kind"
    _, made, file, reader, spoil = next(k for k in kinds(Path(folder)) if k[0] == name)
    root = made()
    path = root / file
    good, found = path.read_bytes(), dict(refused=0, same=0, other=0)
    whole = reader(root)
    for i in range(count):
        shutil.rmtree(root.parent / "converted", ignore_errors=True)
        path.write_bytes(spoil(np.random.default_rng([seed, i]), good))
        try:
            with at_most(60):
                read = reader(root)
        except (ValueError, OSError) as e:
            text = str(e)
            if isinstance(e, UnicodeError) or "\n" in text or path.name not in text:
                raise AssertionError(
                    f"{name}, seed {seed}, mutation {i}: {type(e).__name__}: {text}"
                ) from e
            found["refused"] += 1
        except BaseException as e:
            raise AssertionError(
                f"{name}, seed {seed}, mutation {i}: {type(e).__name__}: {e}"
            ) from e
        else:
            found["same" if same(whole, read) else "other"] += 1
    path.write_bytes(good)
    assert same(whole, reader(root)), (
        f"{name}: the reader or the damage has changed other files"
    )
    return found


if __name__ == "__main__":
    print(json.dumps(survey(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
