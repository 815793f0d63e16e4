"The wheel: what is inside, and that it works without the optional packages; the face"

import ast
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
package = root / "dreamer4_nb"
files = sorted(path.relative_to(root) for path in package.rglob("[!_]*.py"))
modules = [".".join(path.with_suffix("").parts) for path in files]
parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
parser.read(root / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def lines(key):
    return [line for line in settings[key].splitlines() if line]


def run(*args, **options):
    "A process that must succeed; what it printed"
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "Wheel and sdist, built from a copy of the sources by the tools of this environment"
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("wheel")
    for name in (
        "setup.py",
        "settings.ini",
        "pyproject.toml",
        "MANIFEST.in",
        "LICENSE",
        "NOTICE",
        "README.md",
    ):
        if (root / name).exists():
            shutil.copy(root / name, source / name)
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
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "dreamer4_nb"
    }
    assert {path.as_posix() for path in files} <= set(names)
    assert "dreamer4_nb/py.typed" in names
    for licence in ("LICENSE", "NOTICE"):
        assert any(name.endswith(licence) for name in names)


def test_every_file_of_the_package_that_is_no_code_is_inside(wheel):
    "Templates and style sheets too"
    kinds = (".css", ".html", ".jinja", ".js", ".svg", ".typed")
    there = {
        path.relative_to(root).as_posix()
        for path in package.rglob("*")
        if path.suffix in kinds or path.name == "py.typed"
    }
    assert there <= set(zipfile.ZipFile(wheel).namelist())


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
    assert lines("console_scripts") == ["dreamer4=dreamer4_nb.cli:main"]
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "dreamer4 = dreamer4_nb.cli:main" in archive.read(name).decode()


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    text = archive.read(name).decode()
    assert f"Version: {settings['version']}" in text
    assert "License-Expression: Apache-2.0" in text
    for extra in ("demo", "notebooks", "dev", "book", "minerl", "all"):
        assert f"Provides-Extra: {extra}" in text


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
        "fastcore",
        "pytest",
    ]
    code = f"""
import importlib, sys
for name in {optional}:
    sys.modules[name] = None  # an import of it now fails
for name in {modules}:
    importlib.import_module(name)
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run(fresh_python, "-c", code, cwd=tmp_path, env=environment)


def test_the_command_of_the_installed_copy(fresh_python, tmp_path):
    assert "train" in run(fresh_python.parent / "dreamer4", "--help", cwd=tmp_path)


def test_the_import_is_light(fresh_python, tmp_path):
    "Nothing but a little of the standard library, and no PyTorch before a model is asked for"
    code = """
import sys
import dreamer4_nb as d4
print(*sorted({"torch", "numpy", "pydantic", "matplotlib"} & set(sys.modules)))
d4.laptop()
print("torch" in sys.modules)
"""
    assert run(fresh_python, "-c", code, cwd=tmp_path).splitlines() == ["", "False"]


def threads_of(code, **policy):
    "What the OpenMP of PyTorch says of itself when it is loaded, and the warnings of a run"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "OMP_NUM_THREADS": "2"} | policy
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    spins = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if not spins:
        pytest.skip("this PyTorch has another OpenMP than GNU's")
    return set(spins), done.stderr.count("UserWarning: torch was imported before dreamer4_nb")


USES_A_RUN = (
    "from dreamer4_nb.run.load import PRETRAINED, RunFolder; "
    "RunFolder(PRETRAINED); RunFolder(PRETRAINED)"
)


def test_threads_sleep_while_they_wait():
    assert threads_of(f"import dreamer4_nb; {USES_A_RUN}") == ({"0"}, 0)
    spins, _ = threads_of("import dreamer4_nb, torch", OMP_WAIT_POLICY="ACTIVE")
    assert spins != {"0"}  # what the user has set stays


def test_threads_that_stay_awake_are_told_of_once():
    spins, warnings = threads_of(f"import torch; {USES_A_RUN}")
    assert spins != {"0"} and warnings == 1


def test_every_name_that_the_package_offers_is_there():
    import dreamer4_nb as d4

    assert set(d4.__all__) < set(dir(d4))
    for name in d4.__all__:
        assert getattr(d4, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        d4.lode  # noqa: B018


def test_type_checkers_see_the_same_names():
    "The imports that only they read, and the table that is used when the program runs"
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    (block,) = [node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING"]
    modules_by_name = {}
    for node in block.body:
        for alias in node.names:
            modules_by_name[alias.name] = node.module.removeprefix("dreamer4_nb.")
    import dreamer4_nb as d4

    assert modules_by_name == d4._MODULE_OF
    assert sorted(modules_by_name) == d4.__all__


WRONG_CALLS = [
    ("load('nowhere')", "nowhere/run.json: no run here"),
    ("load('pretrained', device='cuda:99')", "must be a device that PyTorch can use"),
    ("load('pretrained', policy='best')", "'best'"),
    ("load('pretrained').act(np.zeros((64, 64), np.uint8))", "expected (3, 64, 64)"),
    ("load('pretrained').act(np.zeros((64, 64, 3)))", "expected uint8"),
    (
        "load('pretrained').act(np.zeros((2, 64, 64, 3), np.uint8))",
        "shape (2, 64, 64, 3), expected (3, 64, 64) or (64, 64, 3)",
    ),
    ("load(3)", "run: 3 is not the folder of a run"),
    ("load(d4.__file__)", "__init__.py: is a file. Hint: name its folder"),
    ("Player('pretrained', device='cudaa')", "device = 'cudaa': must be a device"),
    ("Player('nowhere')", "nowhere/run.json: no run here"),
    ("Recordings('nowhere')", "nowhere"),
    ("convert('nowhere', 'out')", "nowhere: no such folder"),
    ("convert('empty', 'out')", "no recordings here"),
    ("train(d4.laptop(), 'nowhere', 'out')", "nowhere: no such folder"),
    ("train(d4.paper(), None, 'out')", "data.task = 'recordings'"),
    ("train(d4.laptop(), None, 'out', device='gpu')", "must be a device that PyTorch can"),
    ("train(d4.laptop(), None, 'out', upto='agnet')", "Did you mean 'agent'?"),
    ("train({}, None, 'out')", "config: dict, expected a Config"),
    ("evaluate('nowhere')", "nowhere/run.json: no run here"),
    ("make_world('fly')", "'fly'"),
    ("named('laptob')", "Did you mean 'laptop'?"),
]


@pytest.mark.parametrize("call, message", WRONG_CALLS)
def test_an_error_of_the_library_is_one_line(call, message, tmp_path, monkeypatch):
    "It names what was expected, and nothing has been written"
    import numpy as np

    import dreamer4_nb as d4

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((TypeError, ValueError, OSError)) as error:
        eval(f"d4.{call}", {"d4": d4, "np": np})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def interpreter(version):
    "Python of that version, if this machine has one that is not merely a name on the path"
    path = shutil.which(f"python{version}")
    if path is None:
        return None
    works = subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0
    return path if works else None


def on_python(version, folder):
    "A new environment of that version, without pip"
    python = interpreter(version) or pytest.skip(f"no python{version} here")
    run(python, "-m", "venv", "--without-pip", folder)
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
        python.parent / "dreamer4",
        "demo",
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


def distribution(requirement):
    "The name in a requirement, as package indexes write it"
    return re.split(r"[<>=!;\[ ]", requirement)[0].lower().replace("_", "-")


def test_lock_covers_requirements():
    "Every requirement but minerl has an exact version in constraints.txt"
    constraints = (root / "constraints.txt").read_text().splitlines()
    locked = {distribution(line) for line in constraints if "==" in line}
    needed = []
    for group in ("", "demo_", "notebooks_", "dev_", "book_"):
        needed += lines(f"{group}requirements")
    assert [line for line in needed if distribution(line) not in locked] == []
