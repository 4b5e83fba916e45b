"""F35: everything that has a name has a hostile one, and all of it is looked at: every view, every detail."""

from __future__ import annotations

import asyncio
import unicodedata
from dataclasses import replace
from typing import Any

from qctl.tui.app import Console
from qctl.tui.snapshot import Health, Snapshot, SourceState
from tests.faults.rows import Record, row
from tests.tui import synthetic

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m\x90q\x9c",
    "[@click=app.quit]x[/]",
    "[red]a[/red] [link=http://evil]b[/link] [[",
    "$q-bad \\[ {} %s",
    "\u202egnol\u2066\u200e",
    "a\u0301" + "\u0301" * 400,
    "n" * 10_000,
    "漢\u200d🏽" * 2_000,
    "\ud83d\x00\r\n\t\x7f",
    "",
)
SIZES = ((80, 24), (160, 40))
#: Nothing of these may stand in what is painted.
FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def poisoned(value: Any, number: int) -> Any:
    """The same values with a hostile text in every text."""
    match value:
        case str() if type(value) is str:
            return f"{HOSTILE[number % len(HOSTILE)]}{value}"
        case tuple():
            return tuple(poisoned(each, number + at) for at, each in enumerate(value))
        case _ if hasattr(value, "__dataclass_fields__"):
            fields = value.__dataclass_fields__
            return replace(
                value, **{name: poisoned(getattr(value, name), number + at) for at, name in enumerate(fields)}
            )
        case _:
            return value


def hostile(tick: int) -> Snapshot:
    """A fleet of hostile names."""
    made = poisoned(synthetic.snapshot(synthetic.Size(hosts=11, consumers=3, queues=12), tick=tick), tick)
    sources = tuple(SourceState(f"s{text}", Health.FAILED, made.at_s, text) for text in HOSTILE[:4])
    return replace(made, sources=sources)


@row("F35", "every name, reason and error of a fleet hostile; every view and detail at two sizes")
def test_hostile_names_are_seen_and_do_nothing(record: Record) -> None:
    painted, seen, bad, clickable = 0, 0, set(), 0

    async def look() -> None:
        nonlocal painted, seen, clickable
        source = synthetic.StillSource(hostile(0))
        inventory = synthetic.inventory()
        app = Console(source, inventory, environment="production", broker=HOSTILE[0], read_only=True)
        async with app.run_test(size=SIZES[0]) as pilot:
            for size in SIZES:
                await pilot.resize_terminal(*size)
                for key in "123456":
                    await pilot.press(key, "w", "g", "enter")
                    for tick in range(2):
                        source.push(hostile(tick))
                        await pilot.pause()
                        await pilot.press("j")
                        for strip in app.screen._compositor.render_strips():
                            for segment in strip:
                                painted += 1
                                seen += r"\x1b" in segment.text
                                bad.update(c for c in segment.text if unicodedata.category(c) in FORBIDDEN)
                                style = segment.style
                                clickable += bool(style and (style.link or "@click" in style.meta))
                    await pilot.press("escape", "slash", *"[/@x", "enter", "escape")
            assert app.is_running

    # When all of it is looked at, then nothing reaches the terminal raw, nothing is clickable, nothing crashes
    asyncio.run(look())
    record.figure("segments painted", painted, at_least=2_000)
    record.figure("segments that show an escape as text", seen, at_least=100)
    record.figure("kinds of characters that must not be painted", len(bad), equals=0)
    record.figure("segments that could be clicked", clickable, equals=0)
    record.verdict()
