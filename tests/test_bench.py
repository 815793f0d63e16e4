"`dreamer4_bench` as a user meets it: processes, exit codes, the results file."

import json
import os
import subprocess
import sys


def call(*args):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return subprocess.run(
        [sys.executable, "-m", "dreamer4_nb.bench", *map(str, args)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )


def test_one_benchmark_at_a_time(tmp_path):
    few = ("--size", "smoke", "--results", tmp_path, "--rounds", 1, "--seconds", 0)
    done = call("--only", "loader", *few)
    assert done.returncode == 0 and "frames per CPU-second" in done.stdout, done.stderr
    assert call("--only", "dynamics_flow", *few).returncode == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (
        list(found["benches"]) == ["loader", "dynamics_flow"]
        and found["versions"]["torch"]
        and found["machine"]["threads"] == 1
    )
    ours, dense, _ = found["benches"]["dynamics_flow"]["arms"].values()
    assert ours["flops"] < dense["flops"] and 0 < ours["share"] < 1 and ours["cpu_seconds"] > 0
    other = call("--only", "loader", "--results", tmp_path)
    assert (
        other.returncode == 1
        and "bench.json: size" in other.stderr
        and "Traceback" not in other.stderr
    )


def test_what_is_refused(tmp_path):
    for args, code, word in [
        (("--only", "nothing"), 2, "--only"),
        (("--peer", tmp_path / "python"), 1, "--peer"),
        (
            ("--peer", sys.executable, "--only", "peer_encode", "--rounds", 1),
            1,
            "No module named 'dreamer4'",
        ),
    ]:
        done = call(*args, "--results", tmp_path)
        assert (
            done.returncode == code and word in done.stderr and "Traceback" not in done.stderr
        ), done.stderr
    assert not (tmp_path / "bench.json").exists()


def test_a_damaged_results_file(tmp_path):
    (tmp_path / "bench.json").write_text('{"format": ')
    done = call("--only", "loader", "--size", "smoke", "--results", tmp_path)
    assert (
        done.returncode == 1 and "bench.json" in done.stderr and "Traceback" not in done.stderr
    )
