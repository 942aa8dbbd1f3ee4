"""Pages in a headless Chromium: what they draw, what they say on the console, what they ask the network for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    *("--enable-logging=stderr", "--virtual-time-budget=5000"),
)

LOCAL = ("file:", "data:", "blob:")


@dataclass(frozen=True)
class Visit:
    """What one visit to a page left behind.

    Attributes:
        dom: The page's elements after its scripts have run.
        console: Lines of its console.
        requests: Addresses outside the page that were asked for.
    """

    dom: str
    console: list[str]
    requests: list[str]

    @property
    def root(self) -> str:
        """The opening tag of the root element."""
        found = re.search(r"<html[^>]*>", self.dom)
        assert found
        return found.group()


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    return found


@pytest.fixture
def visit(chromium: str, tmp_path: Path) -> Callable[..., Visit]:
    """Opens a page, with further command-line words for the browser."""

    def run(content: str, *words: str) -> Visit:
        page, log = tmp_path / "page.html", tmp_path / "net.json"
        page.write_text(content, encoding="utf-8")
        command = [chromium, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", *words]
        done = subprocess.run(
            [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120
        )
        return Visit(
            dom=done.stdout,
            console=[line for line in done.stderr.splitlines() if ":CONSOLE" in line],
            requests=_requests(json.loads(log.read_text())),
        )

    return run


def _requests(log: dict) -> list[str]:
    """What the page asked for: the browser's own errands have no origin."""
    asked = [event["params"] for event in log["events"] if "initiator" in event.get("params", {})]
    return sorted(
        {str(one["url"]) for one in asked if one["initiator"] != "not an origin" and not one["url"].startswith(LOCAL)}
    )
