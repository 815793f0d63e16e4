"The wheel holds what it should, and works in a fresh environment without the optional packages"

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
modules = sorted(o.stem for o in (root / "dreamer4_nb").glob("[!_]*.py"))
settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(root / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
lines = lambda key: [o for o in settings[key].splitlines() if o]


def run(*args, **kw):
    r = subprocess.run([str(o) for o in args], capture_output=True, text=True, **kw)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "Where wheel and sdist are, built from a copy of what the sources list, with the tools of the running environment"
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for o in (
        "setup.py",
        "settings.ini",
        "pyproject.toml",
        "MANIFEST.in",
        "LICENSE",
        "NOTICE",
        "README.md",
    ):
        if (root / o).exists():
            shutil.copy(root / o, source / o)
    shutil.copytree(
        root / "dreamer4_nb",
        source / "dreamer4_nb",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--sdist",
        "--no-isolation",
        "--outdir",
        out,
        source,
    )
    return out


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def fresh_python(wheel, tmp_path_factory):
    "A new environment with the wheel in it, which finds everything else where this one has it"
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        wheel,
    )
    site = Path(
        run(python, "-c", 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    )
    here = [o for o in sys.path if o.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(here) + "\n")
    return python


def test_wheel_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {o.split("/")[0] for o in names if ".dist-info" not in o} == {"dreamer4_nb"}
    assert {f"dreamer4_nb/{o}.py" for o in modules} <= set(names)
    for o in ("LICENSE", "NOTICE"):
        assert any(n.endswith(o) for n in names)


def test_the_trained_run_is_inside(built, wheel):
    "In both, every file of it"
    sdist = tarfile.open(next(built.glob("*.tar.gz")))
    there = {
        p.relative_to(root).as_posix()
        for p in (root / "dreamer4_nb" / "pretrained").rglob("*")
        if p.is_file()
    }
    assert (
        len(there) > 10
        and there <= set(zipfile.ZipFile(wheel).namelist())
        and there <= {n.split("/", 1)[-1] for n in sdist.getnames()}
    )


def test_entry_points(wheel):
    z = zipfile.ZipFile(wheel)
    text = z.read(next(o for o in z.namelist() if o.endswith("entry_points.txt"))).decode()
    scripts = {o.split("=")[0] for o in lines("console_scripts")}
    assert scripts == {
        f"dreamer4_{o}"
        for o in (
            "record",
            "convert",
            "train",
            "evaluate",
            "demo",
            "claim",
            "experiment",
            "check",
            "bench",
            "play",
        )
    }
    for o in scripts:
        assert re.search(
            rf"^{o} = dreamer4_nb\.(run|claim|experiments|check|bench|play):cli_", text, re.M
        )


def test_metadata(wheel):
    z = zipfile.ZipFile(wheel)
    text = z.read(next(o for o in z.namelist() if o.endswith("METADATA"))).decode()
    assert (
        f"Version: {settings['version']}" in text and "License-Expression: Apache-2.0" in text
    )
    for o in ("demo", "notebooks", "dev", "book", "minerl", "all"):
        assert f"Provides-Extra: {o}" in text


def test_installed_copy_is_used(fresh_python, tmp_path):
    where = run(
        fresh_python, "-c", "import dreamer4_nb; print(dreamer4_nb.__file__)", cwd=tmp_path
    )
    assert "fresh" in where and str(root) not in where


def test_imports_without_optional_packages(fresh_python, tmp_path):
    optional = [
        "minerl",
        "crafter",
        "av",
        "numba",
        "skimage",
        "tensorboard",
        "ipywidgets",
        "anywidget",
        "voila",
        "nbdev",
        "pytest",
    ]
    code = f"""
import sys, importlib
for o in {optional}: sys.modules[o] = None # an import of it now fails
for o in {modules}: importlib.import_module('dreamer4_nb.' + o)
"""
    run(fresh_python, "-c", code, cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "ignore"})


def interpreter(version):
    "Python of that version, if this machine has one that is not merely a name on the path"
    found = shutil.which(f"python{version}")
    return (
        found
        if found
        and subprocess.run([found, "-c", "import venv"], capture_output=True).returncode == 0
        else None
    )


def on_python(version, folder):
    "A new environment of that version, without pip"
    found = interpreter(version) or pytest.skip(f"no python{version} here")
    run(found, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


others = pytest.mark.parametrize(
    "version",
    [o for o in ("3.10", "3.11", "3.12", "3.13") if o != "{}.{}".format(*sys.version_info)],
)


@others
def test_other_pythons_take_the_wheel(wheel, version, tmp_path):
    "By its metadata and its syntax"
    python = on_python(version, tmp_path)
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-compile",
        wheel,
    )
    run(
        python,
        "-m",
        "compileall",
        "-q",
        next(tmp_path.glob("lib*/python*/site-packages/dreamer4_nb")),
    )


@others
@pytest.mark.slow  # with their own torch, which is gigabytes where the index has no small one
def test_other_pythons_run_the_wheel(wheel, version, tmp_path):
    python = on_python(version, tmp_path / "venv")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", f"{wheel}[demo]")
    run(
        python.parent / "dreamer4_demo",
        "--size",
        "smoke",
        "--out",
        tmp_path / "run",
        cwd=tmp_path,
    )
    assert (tmp_path / "run" / "report.html").exists()


def test_version():
    init = (root / "dreamer4_nb/__init__.py").read_text()
    assert f'"{settings["version"]}"' in init
    assert f"## {settings['version']}" in (root / "CHANGELOG.md").read_text()


def test_lock_covers_requirements():
    "Every requirement but minerl has an exact version in constraints.txt"
    name = lambda o: re.split(r"[<>=!;\[ ]", o)[0].lower().replace("_", "-")
    locked = {
        name(o) for o in (root / "constraints.txt").read_text().splitlines() if "==" in o
    }
    needed = [
        o
        for k in ("", "demo_", "notebooks_", "dev_", "book_")
        for o in lines(f"{k}requirements")
    ]
    assert [o for o in needed if name(o) not in locked] == []
