"""A real browser in front of the panel: servers, keys, and how fast it is.

python tests/page.py RUN JSON PNG [speed]

With `speed` only the page is measured; what the file says about dream and truth stays.
"""

import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

SCRIPTS = Path(sysconfig.get_path("scripts"))
CHROMIUM = (
    shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)


@contextlib.contextmanager
def browser(width=1100, height=900):
    "A page of Debian's Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        # the sandbox does not start as root
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport=dict(width=width, height=height))
        page.set_default_timeout(300_000)  # milliseconds; a busy machine is slow
        try:
            yield page
        finally:
            chromium.close()


@contextlib.contextmanager
def server(*command, **variables):  # of the environment
    "A process that is gone afterwards, with all its children"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | variables
    p = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=env,
    )
    try:
        yield p
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGTERM)
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()


def wait_for_answer(url, seconds=300):
    "Wait until a server answers; the address is returned"
    for _ in range(10 * seconds):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=30):
            return url
        time.sleep(0.1)
    raise TimeoutError(url)


@contextlib.contextmanager
def voila_server(run, out):
    "The process of `dreamer4 play`, and its address"
    with server(SCRIPTS / "dreamer4", "play", run, "--port", 0, "--out", out) as p:
        line = p.stdout.readline()
        addresses = [word for word in line.split() if word.startswith("http")]
        yield p, wait_for_answer(addresses[0])


@contextlib.contextmanager
def voila(run, out):
    "The address of `dreamer4 play`"
    with voila_server(run, out) as (_, url):
        yield url


@contextlib.contextmanager
def lab(folder):
    "The address of JupyterLab with `play.ipynb` in a folder"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with server(
        SCRIPTS / "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--log-level=ERROR",
        JUPYTER_CONFIG_DIR=f"{folder}/config",
    ):
        yield wait_for_answer(f"http://localhost:{port}/lab") + "/tree/play.ipynb"


# notes in the page when a key went down and when a picture was drawn
_NOTE_TIMES = """() => {
  const el = document.querySelector('.dreamer4-screen')
  window.times = { keys: [], pictures: [] }
  el.addEventListener('keydown', () => window.times.keys.push(performance.now()), true)
  const note = () => window.times.pictures.push(performance.now())
  new MutationObserver(note).observe(el, { attributeFilter: ['data-drawn'] })
}"""
ARROWS = ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown")


def processor_seconds():
    "Of this process and all below it: test, browser, server, kernel"
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def press_one_by_one(page, presses, keys):
    "Press a key, wait for its picture, and so on"
    for i in range(presses):
        page.keyboard.press(keys[i % len(keys)])
        page.wait_for_function(f"window.times.pictures.length > {i}", polling=5)


def press_without_waiting(page, seconds, keys):
    "Press keys faster than they can be served, each of them twenty times"
    end = time.monotonic() + seconds
    i = 0
    while time.monotonic() < end:
        page.keyboard.press(keys[i // 20 % len(keys)])
        i += 1
    time.sleep(0.5)


def hold_down(page, seconds, key):
    "A key goes down and is repeated 30 times a second, as keyboards do, until it is released"
    end = time.monotonic() + seconds
    repeat = time.monotonic()
    while repeat < end:
        page.keyboard.down(key)
        repeat += 1 / 30
        time.sleep(max(0, repeat - time.monotonic()))
    page.keyboard.up(key)


def pictures_while(page, act):
    "Pictures that are drawn while something is done, and how many a second that are"
    before = page.evaluate("window.times.pictures.length")
    act()
    page.wait_for_function(f"window.times.pictures.length > {before}")
    drawn = page.evaluate("window.times.pictures")[before:]
    duration = max(1e-3, drawn[-1] - drawn[0]) / 1000
    return len(drawn), (len(drawn) - 1) / duration


def measure_held(page, seconds, keys):
    "One key after the other is held"

    def hold_keys():
        for key in keys:
            hold_down(page, seconds / len(keys), key)

    before = processor_seconds()
    steps, steps_per_second = pictures_while(page, hold_keys)
    spent = processor_seconds() - before
    return dict(
        steps=steps,
        steps_per_second=steps_per_second,
        processor_ms_per_step=1000 * spent / steps,
    )


def measure(page, presses=60, seconds=10, keys=ARROWS, repeats=3):
    """Milliseconds from a key to its picture; pictures per second.

    For the first, one key is pressed at a time. For the second, keys are held, the median of
    some repetitions; and pressed faster than they can be served.
    """
    page.locator(".dreamer4-screen").click()
    page.evaluate(_NOTE_TIMES)
    before = processor_seconds()
    press_one_by_one(page, presses, keys)
    spent = processor_seconds() - before
    times = page.evaluate("window.times")
    pairs = zip(times["keys"], times["pictures"])
    waits = sorted(picture - key for key, picture in pairs)
    repetitions = [measure_held(page, seconds, keys) for _ in range(repeats)]
    rates = [result["steps_per_second"] for result in repetitions]
    steps, steps_per_second = pictures_while(
        page, lambda: press_without_waiting(page, seconds, keys)
    )
    return dict(
        presses=presses,
        key_to_picture_ms=dict(median=waits[presses // 2], p90=waits[presses * 9 // 10]),
        processor_ms_per_step=1000 * spent / presses,
        steps=steps,
        steps_per_second=steps_per_second,
        held=repetitions,
        held_steps_per_second=statistics.median(rates),
    )


def measure_page(run, picture):
    "Load of the machine before, and what `measure` finds; a screenshot is saved"
    with (
        tempfile.TemporaryDirectory() as out,
        voila(run, out) as url,
        browser(1040, 520) as page,
    ):
        page.goto(url)
        page.locator(".dreamer4-screen[data-drawn]").wait_for()
        time.sleep(2)
        load = os.getloadavg()[0]
        speed = measure(page)
        page.screenshot(path=picture)
    return load, speed


if __name__ == "__main__":
    from dreamer4_nb.files import read_json, write_json
    from dreamer4_nb.play.panel import side_by_side
    from dreamer4_nb.play.player import Player
    from dreamer4_nb.run.folder import machine_info

    run, target, picture, *only = sys.argv[1:]
    load, speed = measure_page(run, picture)
    player = Player(run)
    policy = "imagination" if "imagination" in player.policies else "bc"
    results = dict(
        size=player.run.config.name,
        machine=machine_info(),
        load_before=load,
        speed=speed,
    )
    if only == ["speed"]:
        results["side_by_side"] = read_json(target)["side_by_side"]
    else:
        results["side_by_side"] = side_by_side(player, policy)
    write_json(target, results)
    print(Path(target).read_text())
