"`dreamer4 bench` as a user meets it: processes, exit codes, the results file"

import json
import sys

import pytest
from test_cli import assert_error, assert_usage, call, call_here

QUICK = ("--size", "smoke", "--rounds", 1, "--seconds", 0)


def test_one_benchmark_at_a_time(tmp_path):
    for name in ("loader", "dynamics_flow"):
        done = call("bench", "--only", name, *QUICK, "--results", tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{name}: " in done.stdout
        assert "frames per CPU-second" in done.stdout
    results = json.loads((tmp_path / "bench.json").read_text())
    assert list(results["benches"]) == ["loader", "dynamics_flow"]
    assert results["versions"]["torch"]
    assert results["machine"]["threads"] == 1
    ours, dense, _ = results["benches"]["dynamics_flow"]["arms"].values()
    assert 0 < ours["flops"] < dense["flops"]
    assert ours["share"] > 0
    assert ours["cpu_seconds"] > 0


def test_results_of_another_size(tmp_path):
    (tmp_path / "bench.json").write_text(
        '{"format": "dreamer4_nb.bench", "version": 1, "size": "smoke", "benches": {}}'
    )
    done = call_here("bench", "--only", "loader", "--results", tmp_path)
    assert_error(done, "bench.json: size: holds smoke, not laptop", "--results")


@pytest.mark.parametrize(
    ("text", "word"),
    [('{"format": ', "not readable as JSON"), ('{"format": "other"}', "format: other")],
    ids=["cut short", "another format"],
)
def test_damaged_results(tmp_path, text, word):
    (tmp_path / "bench.json").write_text(text)
    done = call_here("bench", "--only", "loader", *QUICK, "--results", tmp_path)
    assert_error(done, "bench.json", word, "Hint:")
    assert (tmp_path / "bench.json").read_text() == text


def test_unknown_benchmark(tmp_path):
    done = call_here("bench", "--only", "nothing", "--results", tmp_path)
    assert_usage(done, "--only nothing", "tokenizer_training")
    assert not (tmp_path / "bench.json").exists()


def test_peer_without_python(tmp_path):
    done = call_here("bench", "--peer", tmp_path / "python", "--results", tmp_path)
    assert_error(done, "--peer", "no such file", "Hint:")
    assert not (tmp_path / "bench.json").exists()


def test_peer_without_package(tmp_path):
    peer = ("--peer", sys.executable, "--only", "peer_encode")
    done = call("bench", *peer, "--rounds", 1, "--results", tmp_path)
    assert_error(done, "encode: its process ended early", "No module named 'dreamer4'")
    assert not (tmp_path / "bench.json").exists()


def test_a_commit_that_does_not_exist(tmp_path):
    done = call_here("bench", "--against", "no-such-commit", "--results", tmp_path)
    assert_error(done, "--against no-such-commit", "Hint:")
    assert not (tmp_path / "bench.json").exists()


def test_a_device_that_does_not_exist(tmp_path):
    done = call_here("bench", "--device", "nowhere", "--results", tmp_path)
    assert_error(done, "--device", "Hint:", code=2)
    assert not list(tmp_path.iterdir())
