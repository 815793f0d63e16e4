"A training is logged to TensorBoard, Weights & Biases or Trackio, by one setting"

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

import dreamer4_nb.training.callbacks as callbacks
from dreamer4_nb.config import Config, config_from_dict, named
from dreamer4_nb.files import read_json
from dreamer4_nb.training.callbacks import (
    TRACKERS,
    Tracker,
    check_tracker,
    flat_config,
    read_training_log,
)
from dreamer4_nb.training.learner import Learner


class Batches:
    "One number after the other"

    count = 0

    def __next__(self):
        self.count += 1
        return {"x": torch.full((2, 1), float(self.count))}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def loss_fn(model, batch, generator):
    return {"mse": model(batch["x"]).square().mean()}


def learner(out, steps, tracker, **changes):
    torch.manual_seed(0)
    settings = dict(log_every=5, device="cpu", progress=False, callbacks=[tracker])
    return Learner(torch.nn.Linear(1, 1), loss_fn, Batches(), steps, out, **settings | changes)


def install(monkeypatch, name, module=None):
    "Put a stand-in where the package of a tracker is looked for"
    module = module or ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class FakeTracker(GeneralTracker):
    "Notes what Accelerate's trackers are told"

    name = "fake"
    requires_logging_directory = False
    opened = []

    def __init__(self, project, **settings):
        super().__init__()
        self.project = project
        self.settings = settings
        self.config = None
        self.rows = []
        self.calls = []
        self.opened.append(self)

    @property
    def tracker(self):
        return self

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **settings):
        self.rows.append((step, values))

    def finish(self):
        self.calls.append("finish")


@pytest.fixture(params=TRACKERS)
def fake(request, monkeypatch):
    "The name of a tracker that is a `FakeTracker` now"
    FakeTracker.opened = []
    install(monkeypatch, request.param)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, request.param, FakeTracker)
    return request.param


# --- the setting


def test_no_tracker_is_the_default():
    for config in (Config(), named("smoke"), named("laptop"), named("demo_smoke")):
        assert config.tracker == "none"


@pytest.mark.parametrize("name", [*TRACKERS, "none"])
def test_the_setting_knows_every_tracker(name):
    assert named("smoke").change({"tracker": name}).tracker == name


def test_another_name_is_one_line():
    with pytest.raises(ValueError, match="tracker = 'wanda': must be") as error:
        named("smoke").change({"tracker": "wanda"})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="tracker = 'wanda': no such tracker. Hint: choose"):
        check_tracker("wanda")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as error:
        check_tracker(name)
    message = str(error.value)
    assert f"tracker = {name!r}" in message and f"pip install {name}" in message
    assert "\n" not in message


def test_an_accelerate_that_does_not_know_it(monkeypatch):
    install(monkeypatch, "trackio")
    monkeypatch.delitem(LOGGER_TYPE_TO_CLASS, "trackio")
    with pytest.raises(ImportError, match="Hint: pip install -U accelerate"):
        check_tracker("trackio")


def test_no_training_begins_without_the_package(tmp_path, monkeypatch):
    from dreamer4_nb import pipeline

    monkeypatch.setitem(sys.modules, "wandb", None)
    config = named("smoke").change({"tracker": "wandb"})
    for start in (
        lambda: pipeline.demo(config, tmp_path / "run"),
        lambda: pipeline.train(config, None, tmp_path / "run"),
    ):
        with pytest.raises(ImportError, match="Hint: pip install wandb"):
            start()
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_flat_for_trackers():
    flat = flat_config(named("laptop").to_dict())
    assert flat["dynamics.width"] == 96
    assert json.loads(flat["tokenizer_training.length"]) == [[1, 9], [8, 1]]
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())


# --- what is logged


def test_every_row_of_the_log_is_logged(fake, tmp_path):
    learner(tmp_path, 20, Tracker(fake, {"agent": {"hidden": 3}})).fit()
    (tracker,) = FakeTracker.opened
    rows = read_training_log(tmp_path)
    assert [step for step, _ in tracker.rows] == [5, 10, 15, 20]
    assert [dict(values, step=step) for step, values in tracker.rows] == rows
    assert tracker.calls == ["start", "finish"]
    assert {"agent.hidden": 3} in (tracker.config, tracker.settings.get("config"))


def test_an_interrupted_training_continues_its_curves(fake, tmp_path):
    class Break(callbacks.Callback):
        order = 99

        def after_step(self, learner):
            if learner.step == 12:
                learner.interrupt.pressed = True  # as Ctrl-C

    tracker = Tracker(fake, {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, 20, tracker, callbacks=[tracker, Break()]).fit()
    learner(tmp_path, 20, Tracker(fake, {"a": 1})).fit(resume=True)
    first, second = FakeTracker.opened
    assert first.calls == second.calls == ["start", "finish"]
    assert [step for step, _ in first.rows + second.rows] == [5, 10, 15, 20]
    if fake == "tensorboard":
        assert second.settings["purge_step"] == 13
        assert second.config is None  # it is there already
    else:
        assert second.settings["resume"] == "allow"
        kept = "id" if fake == "wandb" else "name"
        assert first.settings[kept] == second.settings[kept]


def test_a_training_that_begins_anew_begins_new_curves(fake, tmp_path):
    learner(tmp_path, 5, Tracker(fake)).fit()
    first = read_json(tmp_path / "tracker.json")
    learner(tmp_path, 5, Tracker(fake)).fit(overwrite=True)
    second = read_json(tmp_path / "tracker.json")
    assert first["tracker"] == second["tracker"] == fake
    assert first["id"] != second["id"]


def test_another_tracker_does_not_take_the_id(tmp_path, monkeypatch):
    FakeTracker.opened = []
    for name in ("wandb", "trackio"):
        install(monkeypatch, name)
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, FakeTracker)
    learner(tmp_path, 5, Tracker("wandb")).fit()
    first = read_json(tmp_path / "tracker.json")
    learner(tmp_path, 10, Tracker("trackio")).fit(resume=True)
    assert read_json(tmp_path / "tracker.json")["id"] != first["id"]


def test_only_the_main_process_logs(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "is_main", lambda: False)
    tracker = Tracker(fake)
    job = SimpleNamespace(out=tmp_path, step=0, logged={"step": 5, "loss": 1.0})
    tracker.before_fit(job)
    tracker.after_step(job)
    tracker.close()
    assert FakeTracker.opened == [] and list(tmp_path.iterdir()) == []


def test_the_same_numbers_with_and_without(fake, tmp_path):
    with_tracker = learner(tmp_path / "a", 20, Tracker(fake)).fit().history
    without = learner(tmp_path / "b", 20, callbacks.Callback()).fit().history
    assert [row["loss"] for row in with_tracker] == [row["loss"] for row in without]


def test_a_tracker_that_does_not_start_is_one_line(fake, tmp_path, monkeypatch):
    def start(self):
        raise KeyError("no API key:\nlog in first")

    monkeypatch.setattr(FakeTracker, "start", start)
    with pytest.raises(RuntimeError, match="did not start .*no API key.*Hint: ") as error:
        learner(tmp_path, 5, Tracker(fake)).fit()
    assert "\n" not in str(error.value)


def test_it_needs_a_folder(fake):
    with pytest.raises(ValueError, match="no folder. Hint: give the learner `out`"):
        learner(None, 5, Tracker(fake)).fit()


# --- Accelerate's own trackers


def test_wandb_is_told_through_accelerate(tmp_path, monkeypatch):
    "A stand-in for the package, used by Accelerate's own tracker"
    calls = SimpleNamespace(settings=[], rows=[], config={}, finished=0)

    class Run:
        def log(self, values, step=None):
            calls.rows.append(step)

        def finish(self):
            calls.finished += 1

    def init(**settings):
        calls.settings.append(settings)
        return Run()

    wandb = install(monkeypatch, "wandb")
    wandb.init = init
    wandb.config = SimpleNamespace(
        update=lambda values, allow_val_change: calls.config.update(values)
    )
    for steps in (10, 20):
        tracker = Tracker("wandb", {"agent": {"hidden": 3}}, "mine/tokenizer")
        learner(tmp_path, steps, tracker).fit(resume=True)
    first, second = calls.settings
    assert first == second
    assert first["project"] == "dreamer4_nb" and first["name"] == "mine/tokenizer"
    assert first["dir"] == str(tmp_path) and first["resume"] == "allow"
    assert calls.rows == [5, 10, 15, 20] and calls.finished == 2
    assert calls.config == {"agent.hidden": 3}


@pytest.mark.parametrize("name", TRACKERS)
def test_the_package_itself(name, tmp_path, monkeypatch):
    "Where it is installed; nothing is sent"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at the import
    pytest.importorskip(name)
    out = tmp_path / "run"
    learner(out, 10, Tracker(name, {"agent": {"hidden": 3}})).fit()
    run_id = read_json(out / "tracker.json")["id"]
    learner(out, 20, Tracker(name, {"agent": {"hidden": 3}})).fit(resume=True)
    assert read_json(out / "tracker.json")["id"] == run_id
    written = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "../trackio"}
    assert any((out / written[name]).iterdir())


def test_tensorboard_has_the_configuration_once(tmp_path):
    pytest.importorskip("tensorboard")
    for steps in (5, 10):
        learner(tmp_path, steps, Tracker("tensorboard", {"agent": {"hidden": 3}})).fit(
            resume=True
        )
    assert len(list(tmp_path.glob("tensorboard/*/hparams.yml"))) == 1


# --- a whole run


def test_every_training_of_a_run_is_logged(tmp_path, monkeypatch):
    "The three of the models, and imagination"
    from dreamer4_nb.pipeline import run_all
    from dreamer4_nb.run.run import Run

    FakeTracker.opened = []
    install(monkeypatch, "wandb")
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", FakeTracker)
    config = named("smoke").change({"tracker": "wandb"})
    run = run_all(Run(tmp_path / "run", config, progress=False), "imagination")
    names = [tracker.settings["name"] for tracker in FakeTracker.opened]
    stages = ["tokenizer", "dynamics", "agent", "imagination"]
    assert names == [f"run/{stage}" for stage in stages]
    for stage, tracker in zip(stages, FakeTracker.opened, strict=True):
        assert tracker.config == flat_config(config.to_dict())
        assert tracker.calls == ["start", "finish"]
        assert (run.out / stage / "tracker.json").exists()
    steps = [[step for step, _ in tracker.rows] for tracker in FakeTracker.opened]
    assert steps == [[4], [4], [4], [1, 2]]
    assert all(values for tracker in FakeTracker.opened for _, values in tracker.rows)


def test_earlier_files_ask_for_tensorboard_in_each_stage():
    stages = {"tokenizer_training": {"tensorboard": False}, "agent_training": {}}
    assert config_from_dict(stages).tracker == "none"
    stages["agent_training"]["tensorboard"] = True
    assert config_from_dict(stages).tracker == "tensorboard"
    assert config_from_dict(stages | {"tracker": "none"}).tracker == "none"


def test_the_run_does_not_change_with_its_tracker():
    from dreamer4_nb.run.changes import config_changes

    old = named("smoke")
    assert config_changes(old, old.change({"tracker": "tensorboard"})) == []
