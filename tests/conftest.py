"Options, profiles and the last line of a test run"

import pytest
from hypothesis import settings

# few and always the same examples by default, many fresh ones with --full
settings.register_profile("sample", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=300, deadline=None)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run slow cells and slow tests, too")


def pytest_configure(config):
    settings.load_profile("full" if config.getoption("--full") else "sample")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    for item in items:
        if "slow" in item.keywords:
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
