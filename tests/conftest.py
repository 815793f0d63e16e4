"Options, profiles and the last line of a test run"

import pytest
from hypothesis import settings

# few and always the same examples by default, many fresh ones with --full
settings.register_profile("sample", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=300, deadline=None)


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="run slow cells and slow tests as well"
    )


def pytest_configure(config):
    settings.load_profile("full" if config.getoption("--full") else "sample")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    for o in items:
        if "slow" in o.keywords:
            o.add_marker(pytest.mark.skip(reason="takes minutes; runs in make test-full"))


@pytest.fixture(scope="session")
def full(request):
    return request.config.getoption("--full")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    count = lambda *kinds: sum(len(reporter.stats.get(k, ())) for k in kinds)
    print(
        f"{count('passed', 'xpassed')} passed, {count('failed', 'error')} failed", flush=True
    )
