"""Errors of one line, older files, and every field from the command line"""

import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path

import pytest
import tyro

import dreamer4_nb
import dreamer4_nb.config as config_module
from dreamer4_nb.config import (
    SIZES,
    AgentConfig,
    Config,
    DataConfig,
    DynamicsConfig,
    EvaluationConfig,
    ImaginationConfig,
    StageConfig,
    TokenizerConfig,
    config_from_dict,
    load_config,
    named,
)

# class, the value that is wrong, and what the one line must say
WRONG = [
    (DataConfig, {"view": "gird"}, "data.view = 'gird': must be 'grid'"),
    (DataConfig, {"held_out": 1.0}, "data.held_out = 1.0: must be a number between 0 and 1"),
    (DataConfig, {"seed": True}, "data.seed = True: must be a whole number"),
    (DataConfig, {"sede": 1}, "data.sede: unknown field. Did you mean 'seed'?"),
    (TokenizerConfig, {"depth": 1}, "tokenizer.depth = 1: must be a whole number, 2 or more"),
    (
        TokenizerConfig,
        {"width": 130},
        "must be a multiple of num_heads = 4, such as 128 or 132",
    ),
    (TokenizerConfig, {"width": 36}, "even number of channels"),
    (TokenizerConfig, {"max_mask": 1.2}, "tokenizer.max_mask = 1.2: must be a number between"),
    (TokenizerConfig, {"image_size": (64, 64, 3)}, "a number of pixels or a pair"),
    (TokenizerConfig, {"image_size": 60}, "Hint: pad to (64, 64)"),
    (TokenizerConfig, {"linear_path": True}, "needs one latent to a patch: num_latents = 64"),
    (TokenizerConfig, {"soft_cap": 0.0}, "tokenizer.soft_cap = 0.0: must be"),
    (DynamicsConfig, {"sample_steps": 3}, "must divide k_max = 4"),
    (DynamicsConfig, {"k_max": 12}, "dynamics.k_max = 12: must be a power of two"),
    (DynamicsConfig, {"num_kv_heads": 4}, "must be a multiple of num_kv_heads = 4"),
    (DynamicsConfig, {"context_signal": 0.0}, "dynamics.context_signal = 0.0: must be"),
    (AgentConfig, {"num_bins": 256}, "agent.num_bins = 256: must be odd"),
    (AgentConfig, {"num_bins": 1}, "agent.num_bins = 1: must be odd"),
    (
        AgentConfig,
        {"bin_range": float("nan")},
        "agent.bin_range = nan: must be a finite number",
    ),
    (AgentConfig, {"bin_range": 81}, "where float32 overflows"),
    (ImaginationConfig, {"gamma": 1.5}, "imagination.gamma = 1.5: must be"),
    (ImaginationConfig, {"value_ema": 1.0}, "or the average never moves"),
    (ImaginationConfig, {"iterations": 5}, "or the policy never learns"),
    (ImaginationConfig, {"advantage_fraction": 0.6}, "at most 0.5"),
    (StageConfig, {"steps": 20}, "warmup = 50: must be at most steps = 20"),
    (StageConfig, {"accumulate": 17}, "accumulate = 17: must be at most batch_size = 16"),
    (StageConfig, {"accumulate": 0}, "stage.accumulate = 0: must be a whole number, 1 or"),
    (StageConfig, {"workers": -1}, "stage.workers = -1: must be a whole number, 0 or more"),
    (StageConfig, {"save_every": 0}, "stage.save_every = 0: must be a whole number, 1 or"),
    (ImaginationConfig, {"save_every": 0}, "imagination.save_every = 0: must be a whole"),
    (StageConfig, {"optimizer": "adam"}, "must be 'adamw' or 'muon'"),
    (StageConfig, {"length": ((64, 0),)}, "pairs (frames, weight)"),
    (StageConfig, {"length": ()}, "pairs (frames, weight)"),
    (EvaluationConfig, {"temperatures": ()}, "one or more numbers above 0"),
    (EvaluationConfig, {"temperatures": (1.0, 0.0)}, "evaluation.temperatures[1] = 0.0: must"),
    (Config, {"name": ""}, "name = '': must be a string, not empty"),
    (Config, {"matmul_precision": "tf32"}, "must be 'highest', 'high' or 'medium'"),
    (Config, {"minutes": float("inf")}, "minutes = inf: must be a finite number"),
]


@pytest.mark.parametrize("cls, values, message", WRONG)
def test_a_wrong_value_is_reported_in_one_line(cls, values, message):
    with pytest.raises(ValueError) as error:
        cls(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# values by dotted name, laid over the default configuration
WRONG_CHANGES = [
    ({"dynamics.widht": 96}, "dynamics.widht: unknown field. Did you mean 'width'?"),
    ({"tokeniser.width": 96}, "tokeniser: unknown field. Did you mean 'tokenizer'?"),
    ({"agent_training.lr": 0}, "agent_training.lr = 0: must be a number above 0"),
    ({"dynamics.packing": 3}, "dynamics.packing = 3: must divide tokenizer.num_latents = 16"),
    ({"imagination.context_length": 99}, "must be at most dynamics.context = 16"),
    ({"agent.latent_reader": 8}, "needs dynamics.agent_view = True"),
    ({"agent_training.warmup": 9999}, "agent_training.warmup = 9999: must be at most steps"),
    ({"data.seed": 5, "data.seed.x": 5}, "Hint: leave out one of the two"),
    ({"agent": 5}, "agent = 5: must be a group of settings in braces"),
]


@pytest.mark.parametrize("values, message", WRONG_CHANGES)
def test_a_wrong_change_names_the_field(values, message):
    with pytest.raises(ValueError) as error:
        Config().change(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# the content of a file
WRONG_FILES = [
    ("", "config.json: not readable as JSON"),
    ('{"version": 1 "name": "x"}', "config.json: not readable as JSON"),
    ("[]", "must be a group of settings in braces"),
    ('{"version": 7}', "version = 7: must be 1"),
    (
        '{"dynamics": {"width": 97}}',
        "dynamics.width = 97: must be a multiple of num_heads = 4",
    ),
    ('{"data": {"seed": "3"}}', "data.seed = '3': must be a whole number"),
    ('{"agent": {"bin_range": NaN}}', "agent.bin_range = nan: must be a finite number"),
]


@pytest.mark.parametrize("text, message", WRONG_FILES)
def test_a_wrong_file_names_itself_and_the_field(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        load_config(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_a_missing_file_comes_with_a_hint(tmp_path):
    with pytest.raises(FileNotFoundError, match="Hint: `Config.save` writes a configuration"):
        load_config(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="Hint: .* --size smoke"):
        load_config("smoke")


def test_frozen_and_replaced_with_all_checks():
    config = Config()
    with pytest.raises(FrozenInstanceError):
        config.minutes = 3.0
    assert replace(config, data=replace(config.data, seed=4)).data.seed == 4
    with pytest.raises(ValueError, match="data.seed = -4"):
        replace(config.data, seed=-4)


@pytest.mark.parametrize("size", SIZES)
def test_a_size_comes_back_from_its_file(tmp_path, size):
    assert load_config(named(size).save(tmp_path / "config.json")) == named(size)


def test_the_name_of_a_configuration_is_only_a_label():
    assert [size for size in SIZES if named(size).is_trial] == ["smoke", "demo_smoke"]
    assert named("smoke").change({"name": "laptop"}).is_trial


def test_the_pretrained_run_is_read_with_its_old_field_names():
    run = Path(dreamer4_nb.__file__).parent / "pretrained" / "run.json"
    old = json.loads(run.read_text())["config"]
    config = config_from_dict(old, Config())
    stage = config.agent_training
    assert stage.decay_fraction == 0.6
    assert stage.max_grad_norm == old["agent_training"].get("clip", 1.0)
    assert config.imagination.advantage_fraction == 0.1
    assert config_from_dict(config.to_dict()) == config


def test_a_file_from_before_a_field_takes_its_default():
    "What the package gained later changes nothing in the configuration of an older run"
    old = named("gpu").to_dict()
    del old["matmul_precision"]
    del old["imagination"]["save_every"]
    for stage in ("tokenizer_training", "dynamics_training", "agent_training"):
        for field in ("workers", "accumulate", "save_every"):
            del old[stage][field]
    config = config_from_dict(old, Config())
    assert config.matmul_precision == "highest"
    assert config.imagination.save_every == 20
    stage = config.dynamics_training
    assert (stage.workers, stage.accumulate, stage.save_every) == (0, 1, 500)


def test_every_option_has_a_help_text_of_its_own(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Config, default=named("laptop"), args=["--help"])
    shown = capsys.readouterr().out
    assert shown.count("wall time of a run") == 1
    assert shown.count("what is recorded") == 1


def _words(value):
    if isinstance(value, tuple):
        return [word for item in value for word in _words(item)]
    return [str(value)]


def _options(config, prefix=""):
    "The command line that describes a whole configuration"
    options = []
    for field in fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        if is_dataclass(value):
            options += _options(value, name + ".")
        elif isinstance(value, bool):
            options += [f"--{name}" if value else f"--{prefix}no-{field.name}"]
        else:
            options += [f"--{name}", *_words(value)]
    return options


@pytest.mark.parametrize("start", ["smoke", "paper"])
@pytest.mark.parametrize("size", SIZES)
def test_every_field_can_be_set_from_the_command_line(start, size):
    config = tyro.cli(Config, default=named(start), args=_options(named(size)))
    assert config == named(size)


def test_a_wrong_option_names_section_and_field(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Config, default=named("laptop"), args=["--dynamics.width", "97"])
    assert "dynamics.width = 97: must be a multiple of" in capsys.readouterr().err


def test_earlier_names_of_intrinsic_rewards_are_read():
    config = config_from_dict({"imagination": {"intrinsic": "novelty"}})
    assert config.imagination.intrinsic == "rnd"


def test_a_field_that_a_whole_file_lacks_means_what_it_meant_then(tmp_path, monkeypatch):
    "Whatever the class and the sizes have today; a file of one's own takes today's values"
    monkeypatch.setitem(config_module.EARLIER_DEFAULTS, "imagination.beta", 0.125)
    old = named("laptop").to_dict()
    del old["imagination"]["beta"], old["imagination"]["objective"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old))
    for config in (load_config(path), config_from_dict(old, Config())):
        assert config.imagination.beta == 0.125
        assert config.imagination.objective == "pmpo"
    own = config_from_dict({"imagination": {"gamma": 0.8}})
    assert own.imagination.beta == named("laptop").imagination.beta


def test_earlier_defaults_are_fields():
    Config().change(config_module.EARLIER_DEFAULTS)
