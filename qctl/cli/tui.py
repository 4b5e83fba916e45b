"""`qctl tui`: the console on a terminal, and one screen of it as text."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qctl.cli import quiet, render
from qctl.cli.options import Output, Settings, pass_settings
from qctl.errors import BrokerUnreachable, QctlError, UsageError

if TYPE_CHECKING:
    from qctl.inventory.model import Inventory
    from qctl.tui.snapshot import Snapshot, Source, View

#: The views, as an argument names them.
VIEWS = ("hosts", "queues", "consumers", "quotas", "dead", "events")
#: Where no terminal says how wide it is.
PIPE_COLUMNS = 120
#: Every process of a worker says something each second.
LISTEN_S = 1.2
#: Giving up takes a moment itself.
_MARGIN_S = 1.0


@click.command()
@click.option(
    "--once",
    is_flag=False,
    flag_value=VIEWS[0],
    type=click.Choice(VIEWS),
    metavar="[VIEW]",
    help=f"Print one screen as text and end: {', '.join(VIEWS)}.  [default: {VIEWS[0]}]",
)
@click.option("--read-only", is_flag=True, help="Without everything that others would see.")
@click.option("--record", metavar="FILE", type=click.Path(path_type=Path), help="Write what is shown to a new file.")
@click.option(
    "--replay", metavar="FILE", type=click.Path(path_type=Path), help="Show what was recorded, and nothing live."
)
@pass_settings
def tui(settings: Settings, once: str | None, read_only: bool, record: Path | None, replay: Path | None) -> int:
    """The console: what the fleet does, live, and the keys that change it.

    ? shows the keys, q ends it. Without a terminal, --once prints one screen. A replay needs neither inventory nor
    broker.
    """
    if settings.output not in (Output.TABLE, Output.WIDE):
        raise UsageError(f"the console has no -o {settings.output}", hint="Programs read: qctl status -o json.")
    if record is not None and (replay is not None or once is not None):
        other = "--replay" if replay is not None else "--once"
        raise UsageError(f"--record and {other} exclude each other", hint="A file is recorded from the live console.")
    quiet.libraries(settings if once is not None else replace(settings, verbose=0))  # the screen is the console's
    if replay is not None:
        return _replayed(settings, replay, once)
    if once is None:
        _needs_terminal()
    return _live(settings, settings.load(), once, read_only=read_only, record=record)


def _replayed(settings: Settings, path: Path, once: str | None) -> int:
    from qctl.tui.replay import ReplaySource

    source = ReplaySource(path)
    head = source.head
    if once is not None:
        return _print(settings, source.last(), once, environment=head.environment, broker=head.broker)
    _needs_terminal()
    return _run(settings, source, None, environment=head.environment, broker=head.broker, read_only=True)


def _live(settings: Settings, inventory: Inventory, once: str | None, *, read_only: bool, record: Path | None) -> int:
    from qctl.broker.login import login_for
    from qctl.tui.live import LiveSource
    from qctl.tui.poller import Poller, asked_of

    login = login_for(inventory.broker, inventory.path, prefer_environment=True)
    poller = Poller(lambda: asked_of(inventory), inventory)
    source: Source = LiveSource(inventory, connect_timeout_s=settings.connect_timeout_s, poller=poller)
    broker = str(login.addresses[0])
    if once is not None:
        shown = first(source, _view(once), timeout_s=settings.connect_timeout_s + _MARGIN_S)
        return _print(settings, shown, once, environment=inventory.environment, broker=broker)
    if record is not None:
        from qctl.tui.recording import Recorder, Recording, new_file

        file = new_file(record)
        source = Recording(source, Recorder(file, environment=inventory.environment, broker=broker, at_s=time.time()))
    return _run(settings, source, inventory, environment=inventory.environment, broker=broker, read_only=read_only)


def _run(
    settings: Settings,
    source: Source,
    inventory: Inventory | None,
    *,
    environment: str,
    broker: str,
    read_only: bool,
) -> int:
    """The console until it is quit; its exit code. Raises QctlError with the terminal restored."""
    if not settings.colour:
        os.environ["NO_COLOR"] = "1"
    from qctl.tui import remember
    from qctl.tui.app import Console

    app = Console(
        source,
        inventory,
        environment=environment,
        broker=broker,
        read_only=read_only,
        connect_timeout_s=settings.connect_timeout_s,
        state=remember.path(),
    )
    app.run()
    for line in app.last_words:
        render.note(f"qctl: {line}")
    if app.failure is not None:
        raise app.failure
    return app.return_code or 0


def first(source: Source, view: View, *, timeout_s: float) -> Snapshot:
    """What is known a moment after every source has answered, or failed to; the newest there is when the time is up.

    While all have failed they are waited for. Raises what the source gives up with, BrokerUnreachable when nobody has
    answered, and QctlError when nothing came at all.
    """
    from qctl.tui.snapshot import Focus, Health

    newest: list[Snapshot] = []
    enough = threading.Event()

    def show(shown: Snapshot) -> None:
        newest[:] = [shown]
        settled = all(state.health is not Health.CONNECTING for state in shown.sources)
        if source.error is not None or (settled and answered(shown)):
            enough.set()

    def answered(shown: Snapshot) -> bool:
        return any(state.health in (Health.OK, Health.STALE) for state in shown.sources)

    source.start(show)
    try:
        source.look_at(Focus(view=view))
        if enough.wait(timeout_s) and source.error is None:
            time.sleep(LISTEN_S)
    finally:
        source.stop()
    if source.error is not None:
        raise source.error
    if not newest:
        raise QctlError("nothing was learnt in time", hint="Try again with a longer --connect-timeout.")
    if not answered(newest[0]):
        said = (f"{state.name}: {state.words}" for state in newest[0].sources if state.words)
        raise BrokerUnreachable(
            f"nobody answers: {'; '.join(said) or 'neither the broker nor its management API'}",
            hint="Check `broker` in the inventory; --connect-timeout waits longer.",
        )
    return newest[0]


def _print(settings: Settings, shown: Snapshot, view: str, *, environment: str, broker: str) -> int:
    """One screen on stdout; what is wrong with its sources on stderr."""
    from qctl.tui import once
    from qctl.tui.snapshot import Health

    width = shutil.get_terminal_size((PIPE_COLUMNS, 0)).columns
    text = once.render(
        shown, _view(view), width=width, environment=environment, broker=broker, colour=render.colour(settings)
    )
    render.raw(text if text.endswith("\n") else text + "\n")
    for state in shown.sources:
        if state.health not in (Health.CONNECTING, Health.OFF) and state.words:
            render.say(settings, f"qctl: {state.name}: {state.words}")
    return 0


def _view(name: str) -> View:
    from qctl.tui.snapshot import View

    return View[name.upper()]


def _needs_terminal() -> None:
    """Raises UsageError where there is nothing to draw on, or no keys come from."""
    hint = "One screen as text is printed by: qctl tui --once."
    # The console draws on stderr, reads stdin, and would leave a pipe behind stdout empty.
    for name, stream in (("input", sys.stdin), ("output", sys.stdout), ("error", sys.stderr)):
        if stream is None or not stream.isatty():
            raise UsageError(f"the console needs a terminal, and standard {name} is none", hint=hint)
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        raise UsageError("the console needs a terminal that can place its cursor, and this one is dumb", hint=hint)
