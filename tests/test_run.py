"The folder of a run: what cannot be opened is named in one line"

import json

import pytest

from dreamer4_nb.config import StageConfig, named
from dreamer4_nb.files import with_checksum
from dreamer4_nb.run.folder import STAGES, RunError, RunFolder
from dreamer4_nb.run.run import Run
from dreamer4_nb.run.stages import stage_callbacks, use_recordings
from dreamer4_nb.training.callbacks import EMA, Compile, EarlyStopping, TensorBoard


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


def test_another_configuration(run):
    assert "another configuration" in error_of_opening(run, named("laptop"))


def test_an_older_run_gets_the_defaults_of_later_fields(run):
    config = json.loads(json.dumps(run.state["config"]))
    del config["imagination"]["marginal_beta"]
    rewrite(run, config=config)
    assert RunFolder(run.out).config.imagination.marginal_beta == 0.0


def test_other_recordings(run, tmp_path):
    run.state["stages"]["record"] = {"source": str(tmp_path / "here")}
    with pytest.raises(RunError, match="this run learns from other recordings"):
        use_recordings(run, tmp_path / "there")


def test_processes_need_a_cpu(tmp_path):
    with pytest.raises(RunError, match="processes: 2 need device cpu"):
        RunFolder(tmp_path / "run", named("smoke"), device="cuda", processes=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "size, device, launched, expected",
    [
        ("smoke", "cpu", None, 1),
        ("laptop", "cpu", None, 2),
        ("laptop", "cuda", None, 1),
        ("smoke", "cpu", "3", 3),
    ],
)
def test_how_many_processes(tmp_path, monkeypatch, size, device, launched, expected):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", launched)
    assert RunFolder(tmp_path / "run", named(size), device).processes == expected


def test_every_stage_is_a_method():
    "Other processes call a stage by its name; the report needs none"
    for stage in STAGES[:-1]:
        assert callable(getattr(Run, stage)), stage


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [EMA]),
        ({"ema": 0.0}, []),
        ({"ema": 0.0, "compile": True}, [Compile]),
        ({"ema": 0.0, "tensorboard": True}, [TensorBoard]),
        ({"ema": 0.0, "patience": 100}, [EarlyStopping]),
    ],
    ids=str,
)
def test_settings_of_a_stage_become_callbacks(settings, expected):
    stage = StageConfig(**settings)
    measure = float if stage.patience else None
    callbacks = stage_callbacks(stage, measure)
    assert [type(callback) for callback in callbacks] == expected
