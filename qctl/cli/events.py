"""`qctl events`: who commanded what when, from the control log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import quiet, render
from qctl.cli.options import Duration, Output, Settings, pass_settings
from qctl.errors import Exit, QctlError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from qctl.broker.session import Connection
    from qctl.inventory.model import Inventory
    from qctl.ops.events import Happened

#: A document of more is not made; lines are printed as they come, however many.
MAX_ITEMS = 100_000
#: How often it is looked whether anybody still reads what is followed.
LOOK_S = 0.5
#: Title and width of each column; what is wider moves the rest of its line, since later lines are not known yet.
WIDTHS = (("AT", 23), ("BY", 12), ("VERB", 11), ("TARGET", 24))


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C; also over broker restarts.")
@click.option("--since", metavar="DURATION", type=Duration(), help="Only what was given so long ago or later: 1h.")
@pass_settings
def events(settings: Settings, follow: bool, since: float | None) -> int:
    """Show who commanded what when, the oldest first; what was ignored of it, with why; and what hosts have found out:
    that somebody else spends a quota of theirs too.

    BY is the broker's user, which the broker has verified; what a command says of itself (as, at) is shown as claimed.
    """
    import asyncio

    if follow and settings.output is Output.JSON:
        raise click.UsageError("--follow has no end that a JSON document could have; use -o jsonl")
    inventory = settings.load()
    quiet.libraries(settings)
    try:
        asyncio.run(_run(settings, inventory, follow=follow, ago_s=since))
    except KeyboardInterrupt:
        if not follow:
            raise
        return Exit.INTERRUPTED  # how a follow ends; there is nothing to say about it
    return Exit.DONE


async def _run(settings: Settings, inventory: Inventory, *, follow: bool, ago_s: float | None) -> None:
    import asyncio
    import time

    from qctl.broker.connect import connect_within
    from qctl.broker.login import login_for
    from qctl.ops.events import followed, recorded

    async def dial() -> Connection:
        login = login_for(inventory.broker, inventory.path, prefer_environment=True)
        return await connect_within(login, name="qctl events", timeout_s=settings.connect_timeout_s)

    operators = frozenset(inventory.operators) or None
    since_s = None if ago_s is None else time.time() - ago_s
    if follow:
        say = lambda words: render.say(settings, f"qctl: {words}")  # noqa: E731
        printing = asyncio.ensure_future(
            _print(settings, followed(dial, operators=operators, since_s=since_s, say=say), at_once=True)
        )
        leaving = asyncio.ensure_future(_reader_gone())
        try:
            done, _ = await asyncio.wait({printing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            printing.cancel()
            leaving.cancel()
            await asyncio.wait({printing, leaving})
        return
    connection = await dial()
    try:
        await _print(settings, recorded(connection, operators=operators, since_s=since_s))
    finally:
        await asyncio.shield(connection.close())


async def _reader_gone() -> None:
    """Raise BrokenPipeError once nobody reads our output any more; a write would notice only with the next event."""
    import asyncio
    import select

    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # errors are told always
    while not any(what & select.POLLERR for _, what in watch.poll(0)):  # noqa: ASYNC110 - nothing would set an event
        await asyncio.sleep(LOOK_S)
    raise BrokenPipeError


async def _print(settings: Settings, found: AsyncIterator[Happened], *, at_once: bool = False) -> None:
    """One line an event as it comes, or one document. at_once: into a pipe as well, for whoever follows."""
    items: list[dict[str, Any]] = []
    titled = False
    if at_once and settings.output in (Output.TABLE, Output.WIDE):
        titled = _say_title()
    async for event in found:
        match settings.output:
            case Output.TABLE | Output.WIDE:
                titled = titled or _say_title()
                render.line(row(event))
            case Output.JSON:
                if len(items) >= MAX_ITEMS:
                    raise QctlError(f"there are more than {MAX_ITEMS} events", hint="Use --since, or -o jsonl.")
                items.append(event.item())
            case _:
                render.show(settings, items=[event.item()], columns=(), name=lambda item: str(item["id"]))
        if at_once:
            sys.stdout.flush()
    if settings.output is Output.JSON:
        render.write_json({"v": 1, "items": items})
    elif not titled and settings.output in (Output.TABLE, Output.WIDE):
        _say_title()


def _say_title() -> bool:
    render.raw(_title())
    sys.stdout.flush()
    return True


def _title() -> str:
    return "".join(title.ljust(width) + "  " for title, width in WIDTHS) + "MORE\n"


def row(event: Happened) -> str:
    """An event as a line: the columns of WIDTHS, then whatever more there is to say of it."""
    from qctl.ops.when import instant, local

    at_s, until_s = instant(event.at), event.until_s
    cells = (
        local(at_s) if at_s is not None else "",
        event.user,
        "notice" if event.notice else event.verb,
        event.target,
    )
    more = (
        event.found_out,
        f"since {local(event.since_s)}" if event.since_s is not None else "",
        ", ".join(event.rates),
        f"until {local(until_s)}" if until_s is not None else "",
        event.reason or "",
        f"as {event.claimed_by}" if event.claimed_by else "",
        "on the host itself" if event.local else "",
        f"IGNORED: {event.ignored}" if event.ignored else "",
    )
    columns = [(cell or render.UNKNOWN).ljust(width) for cell, (_, width) in zip(cells, WIDTHS, strict=True)]
    return "  ".join((*columns, "; ".join(part for part in more if part) or render.UNKNOWN))
