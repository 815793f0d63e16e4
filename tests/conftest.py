"Options, profiles, what several workers share out, and the last line of a test run"

import signal

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# few and always the same examples by default, many fresh ones with --full
settings.register_profile("sample", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=300, deadline=None)


# what takes a minute or more begins first, so that no worker is left alone with it at the end
LONG = (
    "test_cli",
    "test_faults",
    "test_play",
    "test_processes",
    "test_run",
    "test_training",
    "studies/01_experiments",
)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run slow cells and slow tests, too")


def pytest_configure(config):
    settings.load_profile("full" if config.getoption("--full") else "sample")
    # a shell ignores Ctrl-C for what it runs in the background, and so would what tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def unit_of(nodeid):
    "What one worker runs from beginning to end: a notebook, or a file with its fixtures"
    file = nodeid.split("::")[0]
    return nodeid if file.endswith("test_notebooks.py") else file


class UnitScheduling(LoadScopeScheduling):
    "Workers take units in the order of `pytest_collection_modifyitems`"

    def _split_scope(self, nodeid):
        return unit_of(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return UnitScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # this is a worker
        items.sort(key=lambda item: not any(name in unit_of(item.nodeid) for name in LONG))
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            reason = "takes minutes; runs in make test-full"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def full(request):
    return request.config.getoption("--full")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return

    def count(*kinds):
        return sum(len(reporter.stats.get(kind, ())) for kind in kinds)

    passed = count("passed", "xpassed")
    failed = count("failed", "error")
    print(f"{passed} passed, {failed} failed", flush=True)
