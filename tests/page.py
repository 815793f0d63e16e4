"A real browser in front of the panel: servers, keys, and how fast it goes: python tests/page.py RUN JSON PNG"

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

bin = Path(sysconfig.get_path("scripts"))
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@contextlib.contextmanager
def browser(width=1100, height=900):
    "A page of Debian's Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )  # the sandbox refuses to start as root
        page = chromium.new_page(viewport=dict(width=width, height=height))
        page.set_default_timeout(300_000)  # of a busy machine
        try:
            yield page
        finally:
            chromium.close()


@contextlib.contextmanager
def server(*command, **kw):  # kw: of the environment
    "A process that is gone afterwards, with all its children"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | kw
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


def answers(url, seconds=300):
    for _ in range(10 * seconds):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=30):
            return url
        time.sleep(0.1)
    raise TimeoutError(url)


@contextlib.contextmanager
def voila(run, out):
    "The address of `dreamer4_play`"
    with server(bin / "dreamer4_play", run, "--port", 0, "--out", out) as p:
        line = p.stdout.readline()
        yield answers(next(w for w in line.split() if w.startswith("http")))


@contextlib.contextmanager
def lab(folder):
    "The address of JupyterLab with `play.ipynb` in a folder"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with server(
        bin / "jupyter",
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
        yield answers(f"http://localhost:{port}/lab") + "/tree/play.ipynb"


# notes in the page when a key went down and when the picture after it was there
_WATCH = """() => {
  const el = document.querySelector('.dreamer4-screen'), img = el.querySelector('img')
  window.seen = { keys: [], pictures: [] }
  el.addEventListener('keydown', e => window.seen.keys.push(performance.now()), true)
  img.addEventListener('load', () => window.seen.pictures.push(performance.now()))
}"""


def processor_seconds():
    "Of this process and all below it: test, browser, server, kernel"
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))


def measure(
    page, presses=60, seconds=10, keys=("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown")
):
    "Milliseconds from a key to its picture, one press at a time; pictures per second while keys come faster than they can be served"
    page.locator(".dreamer4-screen").click()
    page.evaluate(_WATCH)
    before = processor_seconds()
    for i in range(presses):
        page.keyboard.press(keys[i % len(keys)])
        page.wait_for_function(f"window.seen.pictures.length > {i}", polling=5)
    spent, seen = processor_seconds() - before, page.evaluate("window.seen")
    waits = sorted(b - a for a, b in zip(seen["keys"], seen["pictures"]))
    start, i = time.monotonic(), 0
    while time.monotonic() < start + seconds:
        page.keyboard.press(keys[i // 20 % len(keys)])
        i += 1
    time.sleep(0.5)
    held = page.evaluate("window.seen.pictures")[presses:]
    return dict(
        presses=presses,
        key_to_picture_ms=dict(median=waits[presses // 2], p90=waits[presses * 9 // 10]),
        processor_ms_per_step=1000 * spent / presses,
        steps=len(held),
        steps_per_second=(len(held) - 1) / max(1e-3, held[-1] - held[0]) * 1000,
    )


if __name__ == "__main__":
    from dreamer4_nb.files import write_json
    from dreamer4_nb.play.panel import side_by_side
    from dreamer4_nb.play.player import Player
    from dreamer4_nb.run.run import machine_info

    run, to, picture = sys.argv[1:]
    with (
        tempfile.TemporaryDirectory() as out,
        voila(run, out) as url,
        browser(1040, 520) as page,
    ):
        page.goto(url)
        page.locator(".dreamer4-screen img").wait_for()
        time.sleep(2)
        load, found = os.getloadavg()[0], measure(page)
        page.screenshot(path=picture)
    player = Player(run)
    write_json(
        to,
        dict(
            size=player.run.config.name,
            machine=machine_info(),
            load_before=load,
            speed=found,
            side_by_side=side_by_side(
                player, "imagination" if "imagination" in player.policies else "bc"
            ),
        ),
    )
    print(Path(to).read_text())
