"""Renders a page in a headless Chromium."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

_INSTALLED = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable")
# Appended to a copy of the page, which says nothing of itself; it allows itself no scripts, so the copy must.
_MEASURE = """<script>
addEventListener("load", () => {
  const page = document.scrollingElement, images = [...document.images].filter(image => image.naturalWidth > 0);
  document.documentElement.dataset.measured = [page.scrollWidth, innerWidth, page.scrollHeight, images.length];
});
</script>"""
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@dataclass(frozen=True)
class View:
    """Observations of the browser.

    Args:
        content_width: Of all that the page holds, in pixels.
        window_width: Of the window.
        height: Height of the whole page.
        images: Number of images drawn.
        requests: Addresses that were asked of a network.
        screenshot: Of the whole page, a PNG.
    """

    content_width: int
    window_width: int
    height: int
    images: int
    requests: tuple[str, ...]
    screenshot: Path


def find_browser() -> tuple[str, str]:
    """Path of a Chromium, fetched if none is installed, or "" and why there is none."""
    for name in _INSTALLED:
        if found := shutil.which(name):
            return found, ""
    folder = ROOT / "build" / "chromium"
    fetched = subprocess.run([ROOT / "scripts" / "chromium.sh", folder], capture_output=True, text=True, check=False)
    if fetched.returncode:
        return "", f"no Chromium is installed, and none could be fetched: {fetched.stderr.strip()}"
    return str(folder / "chromium"), ""


def _run(browser: str, page: Path, folder: Path, *options: str) -> str:
    """Open a page; returns the browser's output."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options, page.as_uri()]
    # A profile of its own, so that nothing is left behind and no other browser is met.
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _requests(log: Path) -> tuple[str, ...]:
    """Addresses in a Chromium network log."""
    content = json.loads(log.read_text(encoding="utf-8"))
    start = content["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    return tuple(e["params"]["url"] for e in content["events"] if e["type"] == start and "url" in e.get("params", {}))


def look(browser: str, page: Path, folder: Path, width: int = 1280) -> View:
    """Open a page in a window of that width, as high as the page, and return the observations.

    Args:
        browser: From `find_browser`.
        page: The HTML file.
        folder: Folder for the files that this creates.
        width: Of the window, in pixels.
    """
    measured = folder / "measured.html"
    measured.write_text(_POLICY.sub("", page.read_text(encoding="utf-8")) + _MEASURE, encoding="utf-8")
    found = re.search(
        r'data-measured="([\d,]+)"', _run(browser, measured, folder, "--dump-dom", f"--window-size={width},900")
    )
    assert found, "the page could not be measured"
    content_width, window_width, height, images = map(int, found[1].split(","))
    screenshot, log = folder / f"{page.stem}.png", folder / "network.json"
    options = [f"--screenshot={screenshot}", f"--window-size={width},{height}", f"--log-net-log={log}"]
    _run(browser, page, folder, *options)
    return View(content_width, window_width, height, images, _requests(log), screenshot)
