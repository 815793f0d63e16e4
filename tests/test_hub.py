"A run as a folder for the Hub: whole, safe, acting as before; no network is used"

import json
import pickle
import shutil
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.errors import LocalEntryNotFoundError

import dreamer4_nb.run.hub as hub
from dreamer4_nb.files import read_json, with_checksum, write_json
from dreamer4_nb.run.folder import RunError, RunFolder
from dreamer4_nb.run.hub import is_hub_name, model_card, run_folder
from dreamer4_nb.run.load import PRETRAINED, TrainedPolicy, load
from dreamer4_nb.training.checkpoint import read_tensors


@pytest.fixture(scope="module")
def frames():
    path = next((PRETRAINED / "converted" / "episodes").iterdir()) / "frames.npy"
    return np.load(path)[:6]


def actions(policy, frames):
    policy.reset()
    return [policy.act(frame) for frame in frames]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "The run of the package, saved as a folder for the Hub"
    folder = tmp_path_factory.mktemp("hub") / "saved"
    assert load("pretrained").save_pretrained(folder) is None
    return folder


@pytest.fixture
def unpacked(tmp_path):
    "A run that is not packed: the weights of the package's one, and no word of packing"
    folder = tmp_path / "run"
    shutil.copytree(PRETRAINED, folder)
    state = read_json(folder / "run.json")
    del state["box"]
    write_json(folder / "run.json", with_checksum(state))
    return folder


class Hub:
    "In place of `snapshot_download`: copies what may be fetched of a folder"

    def __init__(self, source, cache, error=None):
        self.source = source
        self.cache = cache
        self.error = error
        self.calls = []

    def __call__(self, repo_id, *, revision=None, allow_patterns=None, **settings):
        self.calls.append((repo_id, revision))
        if self.error:
            raise self.error
        target = self.cache / "snapshot"
        for path in self.source.rglob("*"):
            if path.is_file() and any(path.match(pattern) for pattern in allow_patterns):
                copy = target / path.relative_to(self.source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        return str(target)


def install(monkeypatch, stand_in):
    def forbidden(*args, **settings):
        raise AssertionError("nothing is downloaded but through snapshot_download")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", forbidden)
    return stand_in


# --- the folder


def test_the_loaded_object_is_a_model_of_the_hub():
    assert issubclass(TrainedPolicy, ModelHubMixin)


def test_the_folder_has_what_the_hub_wants(saved):
    config = read_json(saved / "config.json")
    assert config["library_name"] == "dreamer4_nb"
    assert config["configuration"] == RunFolder(saved).config.to_dict()
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*.safetensors")}
    assert {
        "tokenizer/checkpoint/model.safetensors",
        "policies/imagination.safetensors",
    } < names
    kinds = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert kinds == {".json", ".md", ".npy", ".safetensors"}


def test_the_card_is_read_by_the_hub_and_has_the_numbers(saved):
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "dreamer4_nb"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "reinforcement-learning"
    assert {"dreamer4", "world-model", "collect_wood"} <= set(card.data.tags)
    measured = read_json(PRETRAINED / "run.json")["box"]["measured"]
    values = [result.metric_value for result in card.data.eval_results]
    assert sorted(values) == sorted(measured["returns"].values())
    assert f"{measured['dream_psnr']:.2f} dB" in card.text
    assert "d4.load(" in card.text and "4 held-out recordings" in card.text
    assert "{" not in card.text.replace("{front}", "")


def test_facts_of_the_card_can_be_given(tmp_path):
    facts = {"license": "mit", "datasets": ("owner/recordings",)}
    load("pretrained").save_pretrained(tmp_path / "run", model_card_kwargs=facts)
    data = ModelCard.load(tmp_path / "run" / "README.md").data
    assert (data.license, data.datasets) == ("mit", ["owner/recordings"])


def test_a_run_that_was_not_evaluated_has_a_card(unpacked):
    state = read_json(unpacked / "run.json")
    del state["stages"]["evaluate"]
    write_json(unpacked / "run.json", with_checksum(state))
    text = model_card(RunFolder(unpacked))
    assert "Not evaluated." in text and "model-index" not in text


# --- there and back


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_agent_acts_as_before(saved, frames, temperature):
    before = actions(load("pretrained", temperature=temperature, seed=3), frames)
    again = TrainedPolicy.from_pretrained(saved, temperature=temperature, seed=3)
    assert actions(again, frames) == before
    assert actions(load(saved, temperature=temperature, seed=3), frames) == before


def test_a_run_that_is_not_packed_keeps_its_precision(unpacked, frames, tmp_path):
    before = load(unpacked, temperature=0)
    before.save_pretrained(tmp_path / "saved")
    again = TrainedPolicy.from_pretrained(tmp_path / "saved", temperature=0)
    assert actions(again, frames) == actions(before, frames)
    tensors = read_tensors(tmp_path / "saved" / "agent" / "checkpoint" / "model.safetensors")
    assert {x.dtype for x in tensors.values() if x.is_floating_point()} == {torch.float32}
    state = read_json(tmp_path / "saved" / "run.json")
    assert state["box"]["weights"] == "float32"
    episodes = read_json(tmp_path / "saved" / "converted" / "dataset.json")["episodes"]
    latents = RunFolder(tmp_path / "saved").latents()
    assert [len(latents[episode["name"]]) for episode in episodes] == [25]


def test_what_was_saved_can_be_saved_again(saved, tmp_path):
    load(saved).save_pretrained(tmp_path / "again")
    for path in saved.rglob("*"):
        if path.is_file():
            copy = tmp_path / "again" / path.relative_to(saved)
            assert copy.read_bytes() == path.read_bytes(), path


def test_nothing_is_unpickled(saved, frames, tmp_path, monkeypatch):
    "Not even if somebody has put a pickle beside the files, which is not fetched either"
    source = tmp_path / "repository"
    shutil.copytree(saved, source)
    for name in ("pytorch_model.bin", "agent/model.pkl", "run.py"):
        (source / name).write_bytes(pickle.dumps({}))

    def forbidden(*args, **settings):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    install(monkeypatch, Hub(source, tmp_path))
    again = TrainedPolicy.from_pretrained("owner/name", temperature=0)
    assert len(actions(again, frames)) == len(frames)
    fetched = {path.suffix for path in (tmp_path / "snapshot").rglob("*") if path.is_file()}
    assert fetched == {".json", ".md", ".npy", ".safetensors"}


# --- whole or not at all


@pytest.mark.parametrize("part", ["write_hub_folder", "model_card"])
def test_no_half_written_folder_is_left(part, tmp_path, monkeypatch):
    original = getattr(hub, part)

    def fail(run, *target, **facts):
        if part == "write_hub_folder":
            original(run, *target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, part, fail)
    with pytest.raises(OSError, match="No space left"):
        load("pretrained").save_pretrained(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="remove it first"):
        load("pretrained").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "new").mkdir()
    load("pretrained").save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "README.md").exists()


def test_a_policy_without_a_run_is_not_saved(tmp_path):
    policy = TrainedPolicy(load("pretrained").actor)
    with pytest.raises(RunError, match="Hint: use load"):
        policy.save_pretrained(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# --- names


@pytest.mark.parametrize(
    "name, expected",
    [
        ("owner/name", True),
        ("owner/name-1.5_b", True),
        ("name", False),
        ("pretrained", False),
        ("a/b/c", False),
        ("/owner/name", False),
        ("../name", False),
        ("./name", False),
        ("owner/", False),
        ("here/name", False),  # a mistyped path: the folder `here` exists
    ],
)
def test_which_names_are_of_the_hub(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_hub_name(name) is expected


def test_a_run_is_loaded_by_its_name(saved, frames, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in = install(monkeypatch, Hub(saved, tmp_path))
    policy = load("owner/name", temperature=0, revision="v1")
    assert actions(policy, frames) == actions(load(saved, temperature=0), frames)
    assert stand_in.calls == [("owner/name", "v1")]


def test_a_local_folder_wins(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "owner" / "name")
    stand_in = install(monkeypatch, Hub(saved, tmp_path))
    assert load("owner/name").run.out.resolve() == (tmp_path / "owner" / "name").resolve()
    TrainedPolicy.from_pretrained("owner/name")
    assert stand_in.calls == []


def http_error(kind):
    "An error of huggingface_hub, of several lines as they are, made without a response"
    error = kind.__new__(kind)
    Exception.__init__(error, "404 Client Error.\n\nRepository Not Found for url: ...")
    return error


@pytest.mark.parametrize(
    "error, reason",
    [
        (http_error(huggingface_hub.errors.RepositoryNotFoundError), "no such repository"),
        (http_error(huggingface_hub.errors.RevisionNotFoundError), "no revision 'v9'"),
        (LocalEntryNotFoundError("no\nnetwork"), "the Hub cannot be reached"),
        (RuntimeError("something\nelse"), "something else"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("function", [load, TrainedPolicy.from_pretrained])
def test_what_the_hub_does_not_give_is_told_in_one_line(
    error, reason, function, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, Hub(tmp_path, tmp_path, error))
    with pytest.raises(RunError) as raised:
        function("owner/name", revision="v9")
    message = str(raised.value)
    assert message.startswith("owner/name: no run here") and reason in message
    assert "\n" not in message and "Hint: " in message
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    install(monkeypatch, Hub(tmp_path / "other", tmp_path))
    with pytest.raises(RunError, match="owner/name: run.json: missing"):
        load("owner/name")


@pytest.mark.parametrize("function", [load, TrainedPolicy.from_pretrained])
def test_a_folder_that_is_not_there(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in = install(monkeypatch, Hub(tmp_path, tmp_path))
    (tmp_path / "runs").mkdir()
    for name in ("nothing", "runs/nothing"):
        with pytest.raises(RunError, match=f"{name}/run.json: no run here"):
            function(name)
    assert stand_in.calls == []


def test_an_unknown_setting_is_refused(saved):
    with pytest.raises(TypeError, match="polcy"):
        TrainedPolicy.from_pretrained(saved, polcy="bc")


# --- uploads


def test_push_to_hub_uploads_the_same_folder(saved, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **settings):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, folder_path, **settings):
            for path in folder_path.rglob("*"):
                if path.is_file():
                    uploaded[path.relative_to(folder_path).as_posix()] = path.read_bytes()
            return settings["repo_id"]

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert load("pretrained").push_to_hub("owner/name") == "owner/name"
    expected = {
        path.relative_to(saved).as_posix(): path.read_bytes()
        for path in saved.rglob("*")
        if path.is_file()
    }
    assert uploaded == expected


# --- without huggingface_hub


def test_a_name_without_huggingface_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RunError, match="Hint: pip install huggingface_hub"):
        run_folder("owner/name")


def test_local_folders_need_no_huggingface_hub(tmp_path):
    "In a Python in which it cannot be imported"
    import subprocess

    code = f"""
import sys
sys.modules["huggingface_hub"] = None
import dreamer4_nb as d4
policy = d4.load("pretrained")
policy.save_pretrained({str(tmp_path / "run")!r})
again = type(policy).from_pretrained({str(tmp_path / "run")!r}, temperature=0)
print(again.run.state["task"])
try:
    policy.push_to_hub("owner/name")
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "collect_wood"
    assert second.startswith("owner/name:") and "pip install huggingface_hub" in second
    assert (tmp_path / "run" / "README.md").read_text().startswith("---\nlibrary_name")
