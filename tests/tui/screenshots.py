"""Pictures of the console for docs/, with the real demo running: python -m tests.tui.screenshots [DIRECTORY].

The console is the real one, on a screen of its own in this process; the demo, its broker and its workers are processes.
"""

from __future__ import annotations

import asyncio
import html
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from qctl.broker import management
from qctl.broker.login import login_for
from qctl.inventory.load import load
from qctl.tui.app import Console
from qctl.tui.live import LiveSource
from qctl.tui.poller import Poller

PICTURES = Path(__file__).parents[2] / "docs/screenshots"
WIDE, SMALL = (132, 34), (80, 24)
PATIENCE_S = 90.0
#: The width of a character in a picture.
CELL_X = 12.2
#: Tasks that no API can be called with: dead letters, to have some.
MALFORMED = "".join(f'["page {number}"]\n' for number in range(12))


@contextmanager
def demo(directory: Path) -> Iterator[Path]:
    """The demo at work, and the inventory of its run; ended, with all that it started, afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", "qctl", "demo"],
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "watch it" in line:
                    words = shlex.split(line)
                    yield Path(words[words.index("-i") + 1])
                    return
            raise SystemExit("the demo ended before it began")
        finally:
            process.send_signal(signal.SIGINT)
            process.stderr.read()


def qctl(inventory: Path, *arguments: str, given: str = "") -> subprocess.Popen[str]:
    """A command beside the console."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qctl", "-q", "-i", str(inventory), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(given)
    process.stdin.close()
    return process


def picture_of(app: Console) -> str:
    """What is on the screen, as SVG that asks nothing of the network and looks the same wherever it is drawn."""
    svg = app.export_screenshot(title="qctl tui")
    svg = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return re.sub(r'x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"([^>]*)>((?:&#160;)+)', _without_blanks, svg)


def _without_blanks(found: re.Match[str]) -> str:
    """A text that begins where its first character does: some programs leave leading blanks out."""
    blanks_x = len(found[5]) // len("&#160;") * CELL_X
    x, length = float(found[1]) + blanks_x, max(float(found[3]) - blanks_x, 0.0)
    return f'x="{x:.1f}" y="{found[2]}" textLength="{length:.1f}"{found[4]}>'


def text_of(svg: str) -> str:
    """What can be read in a picture, without its blanks."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", svg, flags=re.DOTALL)))


class Album:
    """Takes the pictures, one after the other."""

    def __init__(self, app: Console, pilot: Pilot[Any], directory: Path) -> None:
        self.app, self.pilot, self.directory = app, pilot, directory

    async def until(self, what: str, true: Callable[[], object]) -> None:
        """Wait for something; whoever waits in vain is told for what, and what was to be seen instead."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not true():
                    await self.pilot.pause(0.1)
        except TimeoutError:
            raise SystemExit(f"never seen: {what}; but {text_of(picture_of(self.app))}") from None

    async def reads(self, *words: str) -> None:
        """Wait until all of this can be read."""
        await self.until(str(words), lambda: all(word in text_of(picture_of(self.app)) for word in words))

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def take(self, name: str) -> None:
        """The picture of this moment."""
        await self.pilot.pause()
        (self.directory / f"{name}.svg").write_text(picture_of(self.app), encoding="utf-8")
        print(name, file=sys.stderr)

    async def in_size(self, size: tuple[int, int]) -> None:
        await self.pilot.resize_terminal(*size)
        await self.pilot.pause(0.3)


async def pictures(path: Path, directory: Path) -> None:
    """Every view, and the way of a pause."""
    inventory = load(path)
    login = login_for(inventory.broker, path, prefer_environment=False)
    poller = Poller(lambda: management.api_of(inventory.broker, path, login), inventory)
    source = LiveSource(inventory, connect_timeout_s=10, poller=poller)
    commands = (
        qctl(path, "quota", "set", "web-2/users-api", "900/60s", "--for", "1h", "--reason", "they asked", "--yes"),
        qctl(path, "enqueue", "timeline", "--file", "-", given=MALFORMED),
    )
    app = Console(source, inventory, environment=inventory.environment, broker=str(login.addresses[0]), state=None)
    async with app.run_test(size=WIDE) as pilot:
        album = Album(app, pilot, directory)
        await script(album)
        for command in commands:
            await asyncio.to_thread(command.wait)


async def script(album: Album) -> None:
    """What is looked at, in this order."""

    def used(host: str) -> int:
        row = album.app.newest and album.app.newest.status.quota(host, "users-api")
        return (row and row.used_units) or 0

    def waiting(queue: str) -> int | None:
        row = album.app.newest and album.app.newest.status.queue(queue)
        return row.ready if row else None

    await album.until("web-1 at its limit, web-2 at work", lambda: used("web-1") >= 200 and used("web-2") >= 300)
    await album.reads("held")
    await album.take("hosts")
    await album.press("enter")
    await album.reads("QUOTAS")
    await album.take("host")
    await album.press("escape")
    await album.in_size(SMALL)
    await album.take("small")
    await album.in_size(WIDE)
    for key, name, words in (
        ("2", "queues", "timeline.dead"),
        ("3", "consumers", "web-2/timeline"),
        ("4", "quotas", "users-api"),
    ):
        await album.press(key)
        await album.until("the tasks that wait", lambda: waiting("timeline") is not None)
        await album.reads(words)
        await album.take(name)
    await way_of_a_pause(album)
    await album.press("6")
    await album.reads("pause", "quota.set")
    await album.take("events")
    await album.press("question_mark")
    await album.reads("Freeze")
    await album.take("help")
    await album.press("escape", "5")
    # The malformed ones wait behind others until a quota returns.
    await album.until("dead letters", lambda: any(row.ready for row in album.app.newest.dead))
    await album.reads(str(len(MALFORMED.splitlines())))
    await album.take("dead")
    await album.press("1", "t")
    await album.reads("paused by")
    await album.take("light")


async def way_of_a_pause(album: Album) -> None:
    """From the question to the proof."""
    await album.press("3", "slash")
    await album.press(*"web-2", "enter")
    await album.until("one consumer", lambda: album.app.main.table.cursor_key.startswith("qctl/web-2/"))
    await album.press("P")
    await album.reads("y confirms")
    # It rests on Cancel; the fields are before it.
    await album.press("shift+tab", *"2h", "shift+tab", *"they asked us to", "tab", "tab")
    await album.reads("they asked us to", "2h")
    await album.take("pause")
    await album.press("y")
    await album.reads("proven")
    await album.take("proof")
    await album.press("escape", "escape")
    await album.reads("paused by")


def main() -> None:
    """All pictures into one directory."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    directory.mkdir(parents=True, exist_ok=True)
    # Pictures are the same wherever they are made: in the colours that nearly every terminal has.
    os.environ["COLORTERM"] = "truecolor"
    os.environ.pop("NO_COLOR", None)
    with tempfile.TemporaryDirectory(prefix="qctl-pictures-") as place, demo(Path(place)) as path:
        asyncio.run(pictures(path, directory))


if __name__ == "__main__":
    main()
