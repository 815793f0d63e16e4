"The folder of a run: what cannot be opened is named in one line, what changes is done again"

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch

from dreamer4_nb.cli import _parse_with_settings
from dreamer4_nb.config import StageConfig, named
from dreamer4_nb.data.actions import ActionSpace
from dreamer4_nb.data.dataset import LatentStore, Recordings
from dreamer4_nb.data.recordings import write_episode
from dreamer4_nb.data.video import write_video
from dreamer4_nb.files import RecordingError, read_json, read_npz, with_checksum
from dreamer4_nb.models.heads import TwoHot
from dreamer4_nb.models.tokenizer import Tokenizer
from dreamer4_nb.pipeline import (
    demo,
    evaluate,
    processes_for,
    run_all,
    stages_left,
    train,
)
from dreamer4_nb.policy.advantages import Monitor
from dreamer4_nb.run import imagination, stages
from dreamer4_nb.run.changes import (
    FIRST_STAGE,
    LEFT_BY,
    NO_INFLUENCE,
    config_changes,
    first_change,
)
from dreamer4_nb.run.checks import check_run
from dreamer4_nb.run.folder import STAGES, RunError, RunFolder
from dreamer4_nb.run.launch import run_lock
from dreamer4_nb.run.load import load
from dreamer4_nb.run.run import Run
from dreamer4_nb.run.stages import (
    TRAINING_STAGES,
    check_needs,
    convert_recordings,
    encode_recordings,
    encode_together,
    grouped,
    name_new_recordings,
    record_world,
    recorded_extent,
    stage_callbacks,
    stage_windows,
    train_tokenizer,
    use_recordings,
)
from dreamer4_nb.training.callbacks import EMA, Compile, EarlyStopping


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run", named("smoke"), progress=False)


def rewrite(run, **values):
    "Write run.json with some values changed, and its checksum"
    state = {k: v for k, v in run.state.items() if k != "crc32"} | values
    (run.out / "run.json").write_text(json.dumps(with_checksum(state)))


def error_of_opening(run, config=None):
    with pytest.raises(RunError) as error:
        RunFolder(run.out, config)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{run.out}/run.json: ")
    assert "Hint: " in message
    return message


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="no run here"):
        RunFolder(tmp_path)


def test_not_json(run):
    (run.out / "run.json").write_text("{")
    assert "not readable as JSON" in error_of_opening(run)


def test_no_dictionary(run):
    (run.out / "run.json").write_text("[]")
    error_of_opening(run)


@pytest.mark.parametrize("values", [{"format": "other"}, {"version": 99}])
def test_another_format(run, values):
    rewrite(run, **values)
    assert "format: " in error_of_opening(run)


def test_a_changed_file(run):
    path = run.out / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "crc32" in error_of_opening(run)


def test_no_stages(run):
    rewrite(run, stages=None)
    assert "stages: missing" in error_of_opening(run)


def test_an_impossible_configuration(run):
    rewrite(run, config=run.state["config"] | {"name": 3})
    assert "config: " in error_of_opening(run)


@pytest.mark.parametrize(
    "values", [{"data.seed": 1}, {"data.task": "tools"}, {"data.episodes": 7}], ids=str
)
def test_other_recordings_are_another_run(run, values):
    message = error_of_opening(run, named("smoke").change(values))
    ((field, value),) = values.items()
    assert field in message
    assert f"-> {value}" in message
    assert "--out" in message
    assert RunFolder(run.out).config == named("smoke")


def test_an_older_run_gets_the_defaults_of_later_fields(run):
    config = json.loads(json.dumps(run.state["config"]))
    del config["imagination"]["marginal_beta"]
    rewrite(run, config=config)
    assert RunFolder(run.out).config.imagination.marginal_beta == 0.0


def test_other_recordings(run, tmp_path):
    run.state["stages"]["record"] = {"source": str(tmp_path / "here")}
    with pytest.raises(RunError, match="this run learns from other recordings"):
        use_recordings(run, tmp_path / "there")


def test_processes_need_a_device_that_can_be_shared():
    with pytest.raises(RunError, match="processes: 2 need device cpu or cuda, not mps"):
        processes_for(named("smoke"), "mps", 2)


@pytest.mark.parametrize(
    "size, device, asked, expected",
    [
        ("smoke", "cpu", None, 1),
        ("smoke", "cpu", 2, 2),
        ("demo_smoke", "cpu", None, 2),
        ("laptop", "cpu", None, 2),
        ("laptop", "cpu", 1, 1),
        ("laptop", "cuda", None, 1),
        ("laptop", "cuda", 4, 4),
    ],
)
def test_how_many_processes(monkeypatch, size, device, asked, expected):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert processes_for(named(size), device, asked) == expected


def test_every_stage_is_a_method():
    "The report alone is written by the pipeline"
    for stage in STAGES[:-1]:
        assert callable(getattr(Run, stage)), stage


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [EMA]),
        ({"ema": 0.0}, []),
        ({"ema": 0.0, "compile": True}, [Compile]),
        ({"ema": 0.0, "patience": 100}, [EarlyStopping]),
    ],
    ids=str,
)
def test_settings_of_a_stage_become_callbacks(settings, expected):
    stage = StageConfig(**settings)
    measure = float if stage.patience else None
    callbacks = stage_callbacks(stage, measure)
    assert [type(callback) for callback in callbacks] == expected


# --- a finished run is opened with other settings


@pytest.fixture
def finished(run):
    "The folder of a run of which every stage is done; its files are empty"
    for paths in LEFT_BY.values():
        for path in paths:
            if path.endswith(".fit.safetensors"):
                continue
            file = run.out / path
            if not file.suffix:
                file = file / "checkpoint" / "state.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path)
    (run.out / "imagination" / "history.json").write_text("[]")
    episodes = [
        dict(name=f"e{i}", steps=3, terminated=False, has_actions=False, has_rewards=False)
        for i in range(6)
    ]
    for episode in episodes:
        frames = run.out / "converted" / "episodes" / episode["name"] / "frames.npy"
        frames.parent.mkdir(parents=True)
        frames.touch()
        LatentStore.write(run.out / "latents", episode["name"], np.zeros((4, 1, 1)))
    head = dict(format="dreamer4_nb.recordings", version=1, env_id="", action_space=None)
    dataset = with_checksum(head | dict(image_size=[64, 64], episodes=episodes))
    (run.out / "converted" / "dataset.json").write_text(json.dumps(dataset))
    stages_done = {name: {"minutes": 1.0} for name in STAGES}
    rewrite(run, stages=stages_done)
    return run.out


def done_stages(out):
    run = RunFolder(out)
    return [name for name in STAGES if run.done(name)]


def reopen(out, capsys, **values):
    "Open a run with some settings changed; the lines that are printed"
    capsys.readouterr()
    changes = {name.replace("__", "."): value for name, value in values.items()}
    RunFolder(out, RunFolder(out).config.change(changes))
    return capsys.readouterr().out.splitlines()


def test_a_finished_run_is_done(finished):
    assert done_stages(finished) == STAGES


@pytest.mark.parametrize(
    "values, first, line",
    [
        (
            {"imagination__iterations": 200},
            "imagination",
            "imagination.iterations: 2 -> 200: continues imagination; then evaluate, report",
        ),
        (
            {"imagination__gamma": 0.5},
            "imagination",
            "imagination.gamma: 0.997 -> 0.5: imagination again; then evaluate, report",
        ),
        (
            {"evaluation__test_worlds": 9},
            "evaluate",
            "evaluation.test_worlds: 2 -> 9: evaluate again; then report",
        ),
        (
            {"dynamics_training__steps": 9},
            "dynamics",
            "dynamics_training.steps: 4 -> 9: continues dynamics; then agent, imagination, "
            "evaluate, report",
        ),
        (
            {"agent__bc_epochs": 9.0},
            "agent",
            "agent.bc_epochs: 1.0 -> 9.0: continues agent; then imagination, evaluate, report",
        ),
    ],
    ids=str,
)
def test_only_what_depends_on_a_change_is_done_again(finished, capsys, values, first, line):
    printed = reopen(finished, capsys, **values)
    assert printed == [line, f"earlier results: {finished}/earlier/1"]
    assert done_stages(finished) == STAGES[: STAGES.index(first)]
    assert RunFolder(finished).state["crc32"]  # the file is whole
    earlier = read_json(finished / "earlier" / "1" / "run.json")
    assert list(earlier["stages"]) == STAGES
    assert (finished / "earlier" / "1" / "results.json").read_text() == "results.json"
    continues = "continues" in line
    if first not in ("evaluate",):
        assert (finished / first / "checkpoint").exists() == continues
        assert (finished / f"earlier/1/{first}/checkpoint").exists() != continues
    assert reopen(finished, capsys, **values) == []


def test_a_continued_stage_keeps_its_time(finished, capsys):
    reopen(finished, capsys, imagination__iterations=200)
    run = RunFolder(finished)
    with run.stage("imagination"):
        pass
    assert run.state["stages"]["imagination"]["minutes"] >= 1


def test_a_shorter_training_begins_anew(finished, capsys):
    reopen(finished, capsys, dynamics_training__steps=2)
    assert not (finished / "dynamics").exists()
    reopen(finished, capsys, dynamics_training__steps=4)
    assert sorted(path.name for path in (finished / "earlier").iterdir()) == ["1"]


def test_each_change_is_named_and_the_first_stage_decides(finished, capsys):
    printed = reopen(finished, capsys, imagination__iterations=9, agent__hidden=64)
    assert "agent.hidden: 32 -> 64: agent again; then imagination, evaluate, report" in printed
    assert any("9: imagination again; then evaluate" in line for line in printed)
    assert done_stages(finished) == STAGES[: STAGES.index("agent")]


@pytest.mark.parametrize(
    "values",
    [
        {"name": "other"},
        {"minutes": 3.0},
        {"matmul_precision": "high"},
        {"imagination__save_every": 3},
        {"dynamics_training__save_every": 3},
        {"dynamics_training__workers": 2},
        {"tracker": "tensorboard"},
        {"dynamics_training__compile": True},
        {"dynamics_training__checkpoint": True},
    ],
    ids=str,
)
def test_what_has_no_influence_changes_silently(finished, capsys, values):
    assert reopen(finished, capsys, **values) == []
    assert done_stages(finished) == STAGES
    assert RunFolder(finished).config != named("smoke")


def test_a_change_before_a_stage_has_begun(run, capsys):
    assert reopen(run.out, capsys, dynamics__width=64) == ["dynamics.width: 32 -> 64"]
    assert not (run.out / "earlier").exists()


def test_longer_minutes_continue(finished):
    "They scale the warmups as well"
    laptop = named("laptop")
    longer = laptop.change({"imagination.iterations": 148, "imagination.value_warmup": 28})
    assert all(change.continues for change in config_changes(laptop, longer))
    too_long = laptop.change({"imagination.iterations": 800, "imagination.value_warmup": 80})
    assert not all(change.continues for change in config_changes(laptop, too_long))


# --- what a stage left has been deleted


@pytest.mark.parametrize(
    "path, stage",
    [
        ("converted/episodes/e3/frames.npy", "convert"),
        ("converted/dataset.json", "convert"),
        ("tokenizer/checkpoint", "tokenizer"),
        ("latents/e5.npy", "encode"),
        ("latents", "encode"),
        ("dynamics/checkpoint", "dynamics"),
        ("agent/checkpoint", "agent"),
        ("policies/bc_all.safetensors", "agent"),
        ("policies/imagination.safetensors", "imagination"),
        ("imagination/history.json", "imagination"),
        ("results.json", "evaluate"),
        ("report.html", "report"),
    ],
)
def test_a_stage_whose_files_are_gone_is_not_done(finished, path, stage):
    gone = finished / path
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    assert stage not in done_stages(finished)


def test_recordings_may_go_once_they_are_converted(finished):
    assert not (finished / "recordings").exists()
    shutil.rmtree(finished / "converted")
    assert "record" not in done_stages(finished)


def test_after_a_lost_model_what_was_learned_from_it_is_done_again(finished, capsys):
    shutil.rmtree(finished / "tokenizer")
    printed = reopen(finished, capsys)
    assert printed[0] == (
        "tokenizer: its files are gone: tokenizer again; then encode, dynamics, agent, "
        "imagination, evaluate, report"
    )
    assert done_stages(finished) == ["record", "convert"]
    assert (finished / "earlier" / "1" / "agent" / "checkpoint" / "state.json").exists()


def test_opening_without_a_configuration_moves_nothing(finished):
    shutil.rmtree(finished / "tokenizer")
    RunFolder(finished)
    assert not (finished / "earlier").exists()


# --- new recordings


def test_new_recordings_are_named(tmp_path, capsys):
    recorder = RunFolder(tmp_path / "recorder", named("smoke"), progress=False)
    record_world(recorder)
    source = recorder.out / "recordings"
    run = RunFolder(tmp_path / "run", named("smoke"), progress=False)
    use_recordings(run, source)
    use_recordings(run, source)
    assert capsys.readouterr().out == ""
    (first, *_) = sorted(source.glob("*/v3_*"))
    for number in range(4):
        shutil.copytree(first, first.with_name(f"v3_new{number}"))
    use_recordings(run, source)
    (line,) = capsys.readouterr().out.splitlines()
    assert "4 new recordings" in line
    assert "v3_new0, v3_new1, v3_new2, ..." in line
    assert "Hint: name another --out" in line
    shutil.rmtree(source)
    use_recordings(run, source)  # a source that is gone is no error


# --- work is dealt out


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_make_the_files_of_one(tmp_path, processes):
    "Each takes every n-th episode; here one after the other, with the ranks of several"
    one = RunFolder(tmp_path / "one", named("smoke"), progress=False)
    record_world(one)
    convert_recordings(one)
    train_tokenizer(one)
    encode_recordings(one)
    many = RunFolder(tmp_path / "many", named("smoke"), progress=False)
    shutil.copytree(one.out / "tokenizer", many.out / "tokenizer")
    counts = []
    for stage in (record_world, convert_recordings, encode_recordings):
        for rank in range(processes):
            many.rank = rank
            many.processes = processes
            stage(many)
            if stage is record_world:
                counts.append(len(list(many.out.glob("recordings/*/v3_*"))))
    own = [len(range(6)[rank::processes]) for rank in range(processes)]
    assert counts == np.cumsum(own).tolist()
    for folder, kind in (("converted", "*.npy"), ("latents", "*.npy")):
        files = sorted(path.relative_to(one.out) for path in (one.out / folder).rglob(kind))
        assert files
        for path in files:
            assert (many.out / path).read_bytes() == (one.out / path).read_bytes(), path


def test_accumulated_batches_are_smaller(tmp_path, run):
    record_world(run)
    convert_recordings(run)
    train, _ = run.data()
    stage = StageConfig(batch_size=6, accumulate=3, length=8)
    assert len(stage_windows(run, stage, train).batch(0)) == 2


def test_films_are_encoded_together():
    torch.manual_seed(0)
    model = Tokenizer(named("smoke").tokenizer).eval()
    rng = np.random.default_rng(0)
    films = [rng.integers(0, 256, (n, 3, 64, 64), dtype=np.uint8) for n in (3, 9, 30, 5)]
    with torch.no_grad():
        alone = [encode_together(model, [film], chunk=16)[0] for film in films]
        one_by_one = encode_together(model, films, chunk=16)
        together = encode_together(model, films, chunk=16, frames=70)
        half = encode_together(model, films, chunk=16, frames=70, mixed_precision="bf16")
    for i, film in enumerate(films):
        assert len(together[i]) == len(film)
        assert torch.equal(one_by_one[i], alone[i])
        torch.testing.assert_close(together[i], alone[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(half[i], alone[i], atol=0.1, rtol=0)
        assert half[i].dtype == torch.float32
        assert not torch.equal(half[i], alone[i])


def test_groups_hold_every_film_once():
    lengths = sorted(np.random.default_rng(0).integers(1, 50, 40).tolist())
    for frames in (0, 60, 1000):
        groups = grouped(lengths, frames)
        assert sum(groups, []) == list(range(40))
        for group in groups:
            padded = len(group) * max(lengths[i] for i in group)
            assert len(group) == 1 or padded <= frames


# --- interrupted anywhere, a run ends with the same files

SETTINGS = {
    "name": "short",
    "agent.bc_epochs": 30.0,
    "imagination.iterations": 4,
    "imagination.save_every": 2,
}


class Stop:
    "Raises Ctrl-C at the n-th call of a function, once"

    def __init__(self, patch, owner, name, number):
        self.left = number
        self.function = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **keywords: self(*args, **keywords))

    def __call__(self, *args, **keywords):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*args, **keywords)


def learned_files(out):
    "What a run has learned, byte for byte"
    kinds = (".safetensors", ".npy")
    files = [path for path in out.rglob("*") if path.suffix in kinds]
    contents = {str(path.relative_to(out)): path.read_bytes() for path in files}
    for path in out.rglob("*.npz"):  # archives hold the time
        for name, array in read_npz(path).items():
            contents[f"{path.relative_to(out)}/{name}"] = array.tobytes()
    return contents


def test_interrupted_in_every_stage_it_learns_the_same(tmp_path, monkeypatch):
    config = named("smoke").change(SETTINGS)
    whole = Run(tmp_path / "whole", config, progress=False)
    run_all(whole, "evaluate")
    out = tmp_path / "stopped"
    moments = [
        (stages, "convert", 1, "convert"),
        (stages, "encode_together", 4, "encode"),
        (stages, "fit_bc_policy", 2, "agent"),
        (Monitor, "__call__", 3, "imagination"),
        (imagination, "write_json", 1, "imagination"),
        ("dreamer4_nb.evaluation.in_worlds", "play_worlds", 7, "evaluate"),
        ("dreamer4_nb.run.evaluate", "reconstruction_scores", 1, "evaluate"),
    ]
    for owner, name, number, stage in moments:
        with monkeypatch.context() as patch:
            if isinstance(owner, str):
                owner = __import__(owner, fromlist=["_"])
            Stop(patch, owner, name, number)
            with pytest.raises(KeyboardInterrupt):
                run_all(Run(out, config, progress=False), "evaluate")
        assert stages_left(Run(out), "evaluate")[0] == stage
    stopped = run_all(Run(out, config, progress=False), "evaluate")
    assert learned_files(stopped.out) == learned_files(whole.out)
    results = [read_json(run.out / "results.json") for run in (stopped, whole)]
    for content in results:
        content.pop("minutes")
    assert results[0] == results[1]
    assert list(out.rglob(".tmp-*")) == []


def test_more_iterations_and_what_follows(tmp_path, capsys):
    "The policy goes on from where it was; the cloned ones are not played again"
    config = named("smoke")
    out = tmp_path / "run"
    run_all(Run(out, config, progress=False), "evaluate")
    before = read_json(out / "imagination" / "history.json")
    cells = {path: path.stat().st_mtime_ns for path in (out / "evaluation").glob("bc*.json")}
    longer = config.change({"imagination.iterations": 4})
    run = Run(out, longer, progress=False)
    assert stages_left(run, "evaluate") == ["imagination", "evaluate"]
    run_all(run, "evaluate")
    after = read_json(out / "imagination" / "history.json")
    assert len(after) == 4
    assert after[: len(before)] == before
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    assert (out / "earlier" / "1" / "policies" / "imagination.safetensors").exists()
    assert stages_left(run, "evaluate") == []


# --- several processes


def test_two_processes_go_through_all_stages(tmp_path, capfd):
    "And what they have played is what one process plays"
    out = tmp_path / "run"
    run = demo(named("smoke"), out, processes=2)
    printed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("[")]
    assert printed == [f"[{number}/9] {stage}" for number, stage in enumerate(STAGES, 1)]
    assert [stage for stage in STAGES if run.done(stage)] == STAGES
    assert run.state["machine"]["processes"] == 2
    assert run.processes == 1
    hidden = [path.name for path in out.rglob(".*")]
    assert hidden == []
    shared = read_json(out / "results.json")["policies"]
    shutil.rmtree(out / "evaluation")
    assert evaluate(out, progress=False)["policies"] == shared


def test_two_commands_do_not_work_in_one_folder(tmp_path):
    with run_lock(tmp_path / "run"):
        with pytest.raises(RunError, match="works in this folder. Hint: wait"):
            demo(named("smoke"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "run.json").exists()


# --- recordings of others: what they pay, how long they are


def write_recordings(folder, steps, rewards=None, actions=True):
    "Recordings of so many steps each; `rewards` is what every step pays"
    rng = np.random.default_rng(0)
    space = ActionSpace(keys=("left",))
    for number, n in enumerate(steps):
        frames = rng.integers(0, 255, (n + 1, 64, 64, 3), dtype=np.uint8)
        keys = {"left": rng.integers(0, 2, n)} if actions else None
        paid = None if rewards is None else np.full(n, rewards, np.float32)
        extra = {"action_space": space.to_dict()}
        write_episode(folder, "Other-v0", f"{number:02}", frames, keys, paid, extra=extra)
    return folder


def learn_from(tmp_path, config, **recordings):
    "A run that has converted recordings of its own"
    source = write_recordings(tmp_path / "source", **recordings)
    run = Run(tmp_path / "other", config, progress=False)
    use_recordings(run, source)
    return run


RECORDED = named("smoke").change({"data.task": "recordings"})


@pytest.mark.parametrize(
    "pay, gamma, bin_range",
    [
        (1.0, 0.9, 5.0),  # returns reach 10, as bins do that end at 147
        (None, 0.9, 5.0),
        (1024.0, 0.9, 10.0),  # returns of 10,240
        (-1024.0, 0.9, 10.0),
        (-1.0, 0.997, 6.6),  # 60 steps cost 60, but the episode was cut off: up to 333
    ],
)
def test_bins_reach_as_far_as_rewards_and_returns(tmp_path, pay, gamma, bin_range):
    config = RECORDED.change({"imagination.gamma": gamma})
    run = learn_from(tmp_path, config, steps=[60, 60], rewards=pay)
    assert run.agent_config.bin_range == bin_range
    assert run.config == config
    assert RunFolder(run.out).agent_config == run.agent_config
    assert RunFolder(run.out, config).done("convert")  # the same settings go on
    check_needs(run, ["agent", "imagination"])
    largest, total = recorded_extent(Recordings(run.out / "converted"), gamma)
    assert TwoHot(bin_range=bin_range).largest > total >= largest


@pytest.mark.parametrize("task", ["collect_wood", "treechop"])
def test_the_embedded_worlds_need_no_wider_bins(tmp_path, task):
    config = named("smoke").change({"data.task": task, "data.episodes": 2})
    run = RunFolder(tmp_path, config, progress=False)
    record_world(run)
    convert_recordings(run)
    assert run.agent_config == config.agent
    assert "bin_range" not in run.state["stages"]["convert"]


def test_rewards_that_no_bin_can_hold(tmp_path):
    with pytest.raises(RunError, match="converted: rewards: 1e.38, more than .* divide"):
        learn_from(tmp_path, RECORDED, steps=[3, 3], rewards=1e38)


def test_another_discount_may_need_wider_bins(tmp_path):
    config = RECORDED.change({"imagination.gamma": 0.5})
    run = learn_from(tmp_path, config, steps=[60, 60], rewards=1.0)
    run = RunFolder(run.out, config.change({"imagination.gamma": 1.0}))
    check_needs(run, ["tokenizer", "agent"])
    run = RunFolder(run.out, config.change({"imagination.gamma": 0.999}))
    with pytest.raises(RunError, match="returns 1,000, but .* --agent.bin_range 7.7") as error:
        check_needs(run, ["agent"])
    assert "bin_range = 5.0 end at 147.4" in str(error.value)
    mended = RunFolder(run.out, run.config.change({"agent.bin_range": 7.7}))
    assert mended.done("convert")
    check_needs(mended, ["agent", "imagination"])


def test_all_stages_that_need_longer_recordings_are_named_at_once(tmp_path, capsys):
    config = named("laptop").change(
        {
            "data.task": "recordings",
            "imagination.context_length": 8,
            "imagination.horizon": 10,
            "tokenizer_training.length": ((1, 9), (8, 1), (32, 2)),
        }
    )
    run = learn_from(tmp_path, config, steps=[12, 12, 3])
    with pytest.raises(RunError) as error:
        check_needs(run, TRAINING_STAGES)
    message = str(error.value)
    assert message.startswith(
        f"{run.out}/converted: the longest recording for training has 13 frames, fewer than "
        "tokenizer_training.length = 1 and 8 and 32, dynamics_training.length = 16; the "
        "longest recording with actions for training has 13 frames, fewer than "
        "agent_training.length = 16, imagination.context_length + imagination.horizon = 8 + 10"
    )
    with pytest.raises(RunError):  # before anything is trained
        run_all(run, "imagination")
    assert not run.done("tokenizer")
    options = message.partition("Hint: give ")[2].split()
    assert len(options) == 13
    _, settings = _parse_with_settings("train", ["x", *options])
    mended = config.change(
        {
            "tokenizer_training.length": settings.tokenizer_training.length,
            "dynamics_training.length": settings.dynamics_training.length,
            "agent_training.length": settings.agent_training.length,
            "imagination.horizon": settings.imagination.horizon,
        }
    )
    assert mended.tokenizer_training.length == ((1, 9), (8, 1), (13, 2))
    again = RunFolder(run.out, mended)
    assert again.done("convert")
    check_needs(again, TRAINING_STAGES)
    check_needs(again, ["imagination"])


def test_a_shorter_horizon_keeps_what_was_trained(finished, capsys):
    printed = reopen(finished, capsys, imagination__horizon=2, imagination__context_length=1)
    assert "imagination.horizon: 3 -> 2: imagination again; then evaluate, report" in printed
    assert done_stages(finished) == STAGES[: STAGES.index("imagination")]


def test_very_short_recordings_have_a_mend(tmp_path):
    run = learn_from(tmp_path, RECORDED, steps=[1, 1, 1])
    with pytest.raises(RunError) as error:
        check_needs(run, TRAINING_STAGES)
    assert str(error.value).endswith(
        "--agent_training.length 2 --imagination.context_length 1 --imagination.horizon 1"
    )


def test_films_without_actions_have_no_agent(tmp_path):
    run = learn_from(tmp_path, RECORDED, steps=[20, 20], actions=False)
    check_needs(run, ["tokenizer", "dynamics"])
    with pytest.raises(RunError, match="no recording for training has actions .* --upto dyn"):
        check_needs(run, TRAINING_STAGES)


def test_observations_that_are_not_recorded_are_named_before_the_tokenizer(tmp_path):
    run = learn_from(
        tmp_path, RECORDED.change({"data.observations": ("compass$angle",)}), steps=[20, 20]
    )
    with pytest.raises(ValueError, match="compass.angle"):
        run_all(run, "dynamics")
    assert not run.done("tokenizer")


def test_recordings_have_no_world_to_play_in(tmp_path):
    with pytest.raises(ValueError, match="upto = 'report': .* Hint: give upto = 'imagin"):
        train(RECORDED, tmp_path, tmp_path / "run", upto="report")


def test_one_long_recording_is_cut(tmp_path, capsys):
    source = write_recordings(tmp_path / "source", steps=[200], rewards=1.0)
    run = Run(tmp_path / "other", RECORDED.change({"data.held_out": 0.2}))
    use_recordings(run, source)
    assert "no recording to hold out: cut into v3_00-training (130" in capsys.readouterr().out
    train, held_out = run.data()
    assert (train.names, held_out.names) == (["v3_00-training"], ["v3_00-held-out"])
    assert train.steps.sum() + held_out.steps.sum() == 180  # 20 lie between
    assert held_out.rewards(0).sum() == held_out.episodes[0]["total_reward"] == 50
    assert held_out.actions(0).shape == (50, 1)
    assert len(held_out.frames(0)) == 51
    assert run.done("convert")
    run_all(Run(run.out, progress=False), "dynamics")
    statuses = [check.status for check in check_run(RunFolder(run.out))]
    assert len(statuses) > 6
    name_new_recordings(run)
    assert "new recordings" not in capsys.readouterr().out


def test_a_short_only_recording_cannot_be_cut(tmp_path):
    with pytest.raises(RecordingError, match="v3_00: the only recording, and too short"):
        learn_from(tmp_path, RECORDED, steps=[9])


@pytest.mark.parametrize("pay, held_steps", [(None, 1), (-0.1, 5)])
def test_recordings_that_reward_nothing_are_copied(tmp_path, capsys, pay, held_steps):
    "All stages go through, and no check of rewards fails, however short the held-out ones"
    config = RECORDED.change({"data.held_out": 0.25, "tokenizer_training.patience": 9})
    chosen = np.random.default_rng(0).permutation(4)[0]
    steps = [held_steps if i == chosen else 30 for i in range(4)]
    run = learn_from(tmp_path, config, steps=steps, rewards=pay)
    assert run.data()[1].steps.tolist() == [held_steps]
    run_all(run, "imagination")
    assert run.has_policy("bc") and run.has_policy("bc_all") and run.has_policy("imagination")
    history = read_json(run.out / "imagination" / "history.json")
    assert len(history) == (2 if pay else 0)
    if not pay:
        agent = run.trained("agent")
        learned, copied = (run.policy(name, agent) for name in ("imagination", "bc"))
        assert torch.equal(learned.outs[0].weight, copied.outs[0].weight)
    failed = {check.name for check in check_run(RunFolder(run.out)) if check.status == "fail"}
    assert not failed & {"rewards are there", "rewards fit the frames", "no alarm is on"}
    assert not failed & {"the reward head knows rewards", "the present matters to dreams"}
    frame = np.zeros((64, 64, 3), np.uint8)
    assert set(load(run.out).act(frame)) == {"left"}


# --- every field that changes


def _other_value(value):
    "Another value of the same type, or None where there is no simple one"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value / 2
    return None


def test_every_changed_field_is_named_or_has_no_influence(finished, capsys):
    "It is done again from a stage on, or the error names it"
    config = RunFolder(finished).config
    named_fields = set()
    for section in FIRST_STAGE:
        for field in fields(getattr(config, section)):
            name = f"{section}.{field.name}"
            value = _other_value(getattr(getattr(config, section), field.name))
            try:
                changed = config.change({name: value})
            except ValueError:
                continue  # together with other fields only
            if changed == config or field.name in NO_INFLUENCE:
                continue
            (change,) = config_changes(config, changed)
            assert change.field == name
            assert str(change).startswith(f"{name}: ")
            named_fields.add(name)
            if change.stage == "record":
                with pytest.raises(RunError, match=f"config: {name}: .* name another --out"):
                    RunFolder(finished, changed)
    assert len(named_fields) > 60


@pytest.mark.parametrize(
    "values, stage",
    [
        ({"data.event": "mine_log"}, "convert"),
        ({"data.held_out": 0.5}, "convert"),
        ({"data.bins": 5}, "convert"),
        ({"data.relevant_within": 3}, "agent"),
        ({"data.relevant_within": 3, "dynamics_training.relevant_fraction": 0.5}, "dynamics"),
        ({"data.observations": ("compass$angle",)}, "encode"),
        ({"agent.bin_range": 7.7}, "agent"),
    ],
    ids=str,
)
def test_the_stage_that_a_field_matters_for(values, stage):
    smoke = named("smoke")
    assert first_change(config_changes(smoke, smoke.change(values)))[0] == stage


def test_a_world_model_of_films_without_a_task(tmp_path):
    "They have no relevant windows, although half of the windows of dynamics were to be such."
    source = tmp_path / "films"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        frames = rng.integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
        write_video(source / f"film{i}.mp4", frames)
    changes = {"data.task": "recordings", "dynamics_training.relevant_fraction": 0.5}
    config = named("smoke").change(changes)
    run = train(config, source, tmp_path / "run", progress=False, upto="dynamics")
    assert run.done("dynamics")
