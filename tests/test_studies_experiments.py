"Experiments and their results files: what is wrong is said in one line"

import json
import subprocess

import numpy as np
import pytest

pytest.importorskip("crafter")
from dreamer4_nb.pipeline import configure
from dreamer4_nb.run.folder import RunError
from dreamer4_nb.run.run import Run
from dreamer4_nb.studies import experiments
from dreamer4_nb.studies.cascade import loss_between
from dreamer4_nb.studies.dream_and_truth import returns_table
from dreamer4_nb.studies.experiments import (
    EXPERIMENTS,
    Experiment,
    measure_in_process,
    measure_variant,
    run_experiment,
)
from dreamer4_nb.studies.forcing import lesson_loss
from dreamer4_nb.studies.results import (
    DISPLAY_NAMES,
    EXPERIMENT_FORMAT,
    EXPERIMENT_VERSION,
    read_variant_results,
    write_variant_results,
)
from dreamer4_nb.studies.reward_heads import sampling_probabilities


def write_results(path, **header):
    about = dict(format=EXPERIMENT_FORMAT, version=EXPERIMENT_VERSION, experiment="phase3")
    write_variant_results(path, about | header, [dict(arm="chosen", seed=0)])


def measure_nothing(run_dir, overrides, seed, worlds):
    return dict(run_dir=run_dir, overrides=overrides, value=seed + 1 / 3)


def raise_error(run_dir, overrides, seed, worlds):
    raise ValueError("nothing to measure")


@pytest.fixture
def registered(monkeypatch):
    "Put an experiment of two variants into the registry, measured in this process"

    def register(measure, requires_stage=""):
        variants = dict(plain={}, changed={"dynamics.width": 64})
        experiment = Experiment(measure, variants, {"data.seed": 1}, requires_stage)
        monkeypatch.setitem(EXPERIMENTS, "tried", experiment)
        monkeypatch.setattr(experiments, "measure_in_process", measure_variant)

    return register


def test_a_process_for_one_variant_keeps_freed_memory(monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout='{"seed": 0}\n', stderr="")

    monkeypatch.setattr(experiments.subprocess, "run", run)
    assert measure_in_process("phase3", "chosen", 0, "run", 1) == {"seed": 0}
    script = commands[0][2]
    assert script.index("keep_freed_memory()") < script.index("print(")


def test_tables_show_display_names():
    returns = dict(returns=[1.0, 2.0])
    policies = {
        f"{policy}{mode}": returns
        for policy in ("bc", "imagination")
        for mode in ("", "_tempered")
    }
    results = [
        dict(arm=name, seed=seed, history=[dict(kl=0.5)], policies=policies)
        for name in ("chosen", "extreme tenths")
        for seed in range(2)
    ]
    table = returns_table(results, base="extreme tenths")
    assert "| top and bottom decile | 1.5 |" in table
    assert "against top and bottom decile" in table
    assert "extreme tenths" not in table


def test_every_display_name_is_of_a_variant():
    variants = {name for experiment in EXPERIMENTS.values() for name in experiment.variants}
    assert DISPLAY_NAMES.keys() <= variants
    assert not set(DISPLAY_NAMES.values()) & variants


def test_results_of_another_experiment(tmp_path):
    path = tmp_path / "phase3.json"
    write_results(path)
    with pytest.raises(RunError, match="experiment: measured with phase3, not another"):
        read_variant_results(path, "another")


def test_results_measured_otherwise(tmp_path):
    path = tmp_path / "phase3.json"
    write_results(path, worlds=32)
    with pytest.raises(RunError, match="phase3.json: worlds: measured with 32, not 64"):
        read_variant_results(path, "phase3", worlds=64)


def test_results_of_another_format(tmp_path):
    path = tmp_path / "phase3.json"
    write_results(path, version=99)
    with pytest.raises(RunError, match="format: .*version 99, expected .*version 1"):
        read_variant_results(path, "phase3")


def test_results_that_are_not_json(tmp_path):
    path = tmp_path / "phase3.json"
    path.write_text("{")
    with pytest.raises(RunError, match="phase3.json: not readable as JSON"):
        read_variant_results(path, "phase3")


def test_unknown_experiment():
    with pytest.raises(ValueError, match="phase4.*phase3"):
        run_experiment("phase4")


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="collect_wood_seed7"):
        run_experiment("phase3", (7,), tmp_path, tmp_path)


def test_run_without_the_stage(tmp_path):
    Run(tmp_path / "collect_wood_seed0", configure("smoke"), progress=False)
    with pytest.raises(RunError, match="run.json: stages: agent is not done"):
        run_experiment("phase3", (0,), tmp_path, tmp_path)


def test_only_what_is_missing_is_measured(tmp_path, registered):
    registered(measure_nothing)
    settings = dict(runs=tmp_path, results=tmp_path, worlds=2, workers=1, progress=False)
    first = run_experiment("tried", (0,), **settings)
    assert [(r["arm"], r["value"]) for r in first] == [
        ("plain", 0.33333),
        ("changed", 0.33333),
    ]
    assert first[1]["overrides"] == {"data.seed": 1, "dynamics.width": 64}
    assert first[1]["run_dir"] == str(tmp_path / "collect_wood_seed0")
    registered(raise_error)
    assert run_experiment("tried", (0,), **settings) == first
    content = json.loads((tmp_path / "tried.json").read_text())
    assert content["experiment"] == "tried"
    assert content["cells"] == first


def test_an_error_is_passed_on(tmp_path, registered):
    registered(raise_error)
    with pytest.raises(ValueError, match="nothing to measure"):
        run_experiment("tried", (0,), tmp_path, tmp_path, worlds=2, progress=False)


def test_an_error_in_a_process_is_one_line(tmp_path):
    with pytest.raises(RunError, match="phase3: chosen, seed 0: .*no run here"):
        experiments.measure_in_process("phase3", "chosen", 0, str(tmp_path / "none"), 2)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_variants_change_settings_that_exist(name):
    "Dotted names are settings of the configuration; a wrong one raises"
    experiment = EXPERIMENTS[name]
    config = configure("laptop", "collect_wood", 0)
    for overrides in experiment.variants.values():
        overrides = experiment.shared_overrides | overrides
        config.change({k: v for k, v in overrides.items() if "." in k})


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_measures_are_found_by_name(name):
    "A measure stands at the top level of its module, where a new process finds it"
    measure = EXPERIMENTS[name].measure
    assert measure.__qualname__ == measure.__name__


def test_unknown_choices():
    with pytest.raises(ValueError, match="lesson='nothing' is not one of"):
        lesson_loss("nothing")
    with pytest.raises(ValueError, match="space='nowhere' is not one of"):
        loss_between("nowhere")
    with pytest.raises(ValueError, match="method='never' is not"):
        sampling_probabilities("never", np.ones(3, bool))
