"""A page in headless Chromium: what it logs, and what became of its figures."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")

_OWN = re.compile(r"https?://([a-z0-9-]+\.)*(google|googleapis|gstatic|gvt1)\.com[/:]")
"""What the browser itself asks for as it starts, whatever page it is given."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves the machine, whatever asks for it
    *("--enable-logging=stderr", "--virtual-time-budget=20000"),
)


@dataclass(frozen=True)
class Opened:
    """A page after its scripts have run.

    Attributes:
        dom: its document.
        console: what it logged.
        requested: the addresses that the browser asked for, but for those of files.
    """

    dom: str
    console: list[str]
    requested: list[str]

    @property
    def marks(self) -> dict[str, int]:
        """How many marks each figure has."""
        parts = re.split(r'data-figure="([^"]+)"', self.dom)
        return {name: _marks(part) for name, part in zip(parts[1::2], parts[2::2], strict=True)}


def opened(page: Path, folder: Path) -> Opened:
    """Open a page.

    Args:
        page: its file.
        folder: where the browser may write.
    """
    assert CHROMIUM is not None
    log = folder / "net.json"
    done = subprocess.run(
        [
            CHROMIUM,
            *_FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={log}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = re.findall(r'"url":"((?:https?|wss?):[^"]*)"', log.read_text(errors="replace"))
    return Opened(done.stdout, console, [address for address in asked if not _OWN.match(address)])


def _marks(part: str) -> int:
    """Paths and texts in the groups of marks of one figure, before the next one begins."""
    svg = part.partition("<svg")[2].partition("</svg>")[0]
    groups = re.findall(r'<g class="mark-(?:line|symbol|rect|rule|area|text) role-mark[^>]*>(.*?)</g>', svg, re.DOTALL)
    return sum(len(re.findall(r"<(?:path|text)\b", group)) for group in groups)
