"""`qctl demo`: the two-server scenario, live on a terminal, as plain lines without one, and the judged table."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import render
from qctl.cli.options import Duration, Settings, pass_settings
from qctl.cli.render import Column, Item
from qctl.errors import Exit, Interrupted, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qctl.demo.scenario import HostProgress, Progress, Report

#: Without a terminal: a log, not a film.
PLAIN_LINE_S = 1.0
QUIET_LINE_S = 10.0
FRAMES_PER_S = 8
BAR_CELLS = 32
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The name of the row that is about every host.
ALL = "all"


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into Interrupted; more of them must not cut the tidying up short."""

    def interrupt(number: int, _: FrameType | None) -> None:
        for ending in _ENDING:
            signal.signal(ending, signal.SIG_IGN)
        raise Interrupted(f"the demo was ended by {signal.Signals(number).name}, and all that it had started with it")

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(frames: Generator[Progress | Report, None, None], show: Callable[[Progress], None]) -> Report:
    """Show every look at the scenario and return the report that it ends with. Raises Interrupted and QctlError."""
    from qctl.demo.scenario import Report

    with interruptible(), closing(frames):
        for frame in frames:
            if isinstance(frame, Report):
                return frame
            show(frame)
    raise AssertionError("the scenario ends with a report")


def plain(say: Callable[[str], None]) -> Callable[[Progress], None]:
    """Show progress as lines: at most one a second, and only every ten seconds while nothing but time goes on."""
    said_s = -QUIET_LINE_S
    stage = told = ""
    seen: tuple[object, ...] = ()

    def show(progress: Progress) -> None:
        nonlocal said_s, seen, stage, told
        if not told and (told := watch(progress)):
            say(f"        {told}")
        now = (progress.done, progress.queue)
        if progress.stage != stage:
            said_s, seen, stage = progress.elapsed_s, now, progress.stage
            say(f"{progress.elapsed_s:4.0f} s  {progress.stage}")
        elif progress.elapsed_s - said_s >= (PLAIN_LINE_S if now != seen else QUIET_LINE_S):
            said_s, seen = progress.elapsed_s, now
            say(plain_line(progress))

    return show


def watch(progress: Progress) -> str:
    """How to see the same in the console; "" before the workers are there."""
    if progress.inventory is None:
        return ""
    # As this command was called: it may not be on the PATH.
    called = sys.argv[0] if Path(sys.argv[0]).name == "qctl" else "qctl"
    return f"watch it in another terminal: {shlex.join([called, '-i', str(progress.inventory), 'tui'])}"


def plain_line(progress: Progress) -> str:
    """One look as one line."""
    parts = [f"{host.host} {host.used_units}/{host.limit_units}{_note(host)}" for host in progress.hosts]
    return f"{progress.elapsed_s:4.0f} s  {'; '.join(parts)}; {_queue(progress)}; {_done(progress)}"


def _note(host: HostProgress) -> str:
    refused = f", {host.refused} refused" if host.refused else ""
    return f" spent, more in {host.more_in_s:.0f} s{refused}" if host.spent and host.more_in_s is not None else refused


def _queue(progress: Progress) -> str:
    if progress.queue is None:
        return "queue -"
    return f"queue {progress.queue.ready} waiting, {progress.queue.consumers} subscribed"


def _done(progress: Progress) -> str:
    return f"done {progress.done} of {progress.enqueued}"


class Screen:
    """The live view; rich asks for it several times a second, so that the clock runs on between two looks."""

    def __init__(self, progress: Progress) -> None:
        self._began_s = time.monotonic() - progress.elapsed_s
        self.progress = progress

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress = self.progress
        elapsed_s = time.monotonic() - self._began_s
        title = Text.assemble((f"{elapsed_s:4.0f} s  ", "dim"), (str(progress.stage), "bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(width=6)
        table.add_column(width=BAR_CELLS)
        table.add_column(justify="right", width=11)
        table.add_column()
        for host in progress.hosts:
            table.add_row(
                Text(host.host),
                ProgressBar(
                    total=host.limit_units,
                    completed=host.used_units,
                    width=BAR_CELLS,
                    complete_style="yellow" if host.spent else "green",
                    finished_style="yellow",
                ),
                Text(f"{host.used_units}/{host.limit_units}"),
                Text(_note(host).strip(" ,"), style="yellow"),
            )
        below = Text(f"        {_queue(progress)}; {_done(progress)}" if progress.enqueued else "")
        # In a line of its own and whole, to be copied.
        return Group(title, table, below, Text(watch(progress), style="dim", overflow="fold"))


def live(settings: Settings, frames: Generator[Progress | Report, None, None]) -> Report:
    """Follow the scenario on a terminal; the view is gone when it is over."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, no_color=not settings.colour, highlight=False, markup=False, emoji=False)
    with Live(console=console, refresh_per_second=FRAMES_PER_S, transient=True) as view:
        screen: list[Screen] = []

        def show(progress: Progress) -> None:
            if screen:
                screen[0].progress = progress
            else:
                screen.append(Screen(progress))
                view.update(screen[0])

        return follow(frames, show)


def items(report: Report) -> list[dict[str, Any]]:
    """A row for each host and one for all; what cannot be said of one host is None."""
    judged = report.judgement
    hosts = [
        {
            "host": host.host,
            "limit_units": host.limit_units,
            "first_window_units": host.first_window_units,
            "first_window_use": host.first_window_use,
            "windows_units": list(host.windows_units),
            "most_in_any_window": host.most_in_any_window,
            "refused": host.refused,
            "done": host.tasks_done,
            "lost": None,
            "twice": None,
        }
        for host in judged.hosts
    ]
    total = dict.fromkeys(hosts[0]) | {
        "host": ALL,
        "refused": sum(host.refused for host in judged.hosts),
        "done": judged.tasks_done,
        "lost": judged.lost,
        "twice": judged.twice,
    }
    return [*hosts, total]


def _first_window(item: Item) -> str | None:
    use = item["first_window_use"]
    return None if use is None else f"{item['first_window_units']} ({use:.1%})"


COLUMNS = (
    Column("HOST", lambda item: item["host"]),
    Column("LIMIT", lambda item: item["limit_units"], right=True),
    Column("FIRST WINDOW", _first_window, right=True),
    Column("MOST IN ANY WINDOW", lambda item: item["most_in_any_window"], right=True),
    Column("429S", lambda item: item["refused"], right=True),
    Column("DONE", lambda item: item["done"], right=True),
    Column("LOST", lambda item: item["lost"], right=True),
    Column("TWICE", lambda item: item["twice"], right=True),
    Column("EACH WINDOW", lambda item: " ".join(map(str, item["windows_units"] or [])), wide=True),
)


def document(report: Report) -> dict[str, Any]:
    """The judged table as a JSON document; `docs/demo.md` describes it."""
    judged = report.judgement
    return {
        "v": 1,
        "kept": judged.kept,
        "window_s": report.window_s,
        "elapsed_s": round(report.elapsed_s, 1),
        "enqueued": judged.enqueued,
        "unexpected": judged.unexpected,
        "promises": [{"kept": promise.kept, "sentence": promise.sentence} for promise in judged.promises],
        "directory": str(report.directory) if report.directory else None,
        "items": items(report),
    }


def verdict(report: Report) -> list[str]:
    """A line for each promise, how long it all took, and what is left behind."""
    lines = [f"{'kept  ' if promise.kept else 'BROKEN'}  {promise.sentence}" for promise in report.judgement.promises]
    if not report.finished:
        lines.append("The tasks counted as lost were not done when the time was up.")
    lines.append(f"Judged by the API's own log; all of it took {report.elapsed_s:.0f} s.")
    if report.directory is not None:
        lines.append(f"The logs are in {report.directory}.")
    return lines


def exit_code(report: Report) -> Exit:
    """1 when a promise was broken."""
    return Exit.DONE if report.judgement.kept else Exit.FAILED


@click.command()
@click.option("--window", type=Duration(), default="60s", show_default=True, help="The window of both limits.")
@click.option("--keep", is_flag=True, help="Leave the logs and the inventory of the run behind.")
@pass_settings
def demo(settings: Settings, window: float, keep: bool) -> Exit:
    """See it work: two servers, one quota each.

    A private RabbitMQ, an API that limits web-1 to 200 calls a window and web-2 to 1,000, and a worker for each. 1,200
    tasks and then 600 more go into one queue; the API's own log says what became of them. The exit code is 1 when a
    promise was broken.
    """
    from qctl.demo import scenario

    if not scenario.MIN_WINDOW_S <= window <= scenario.MAX_WINDOW_S:
        raise UsageError(f"--window is between {scenario.MIN_WINDOW_S:g}s and {scenario.MAX_WINDOW_S:g}s")
    frames = scenario.run(window_s=window, keep=keep)
    if on_a_terminal() and not settings.quiet:
        report = live(settings, frames)
    else:
        report = follow(frames, plain(lambda line: render.say(settings, line)))
    render.show(
        settings, items=items(report), columns=COLUMNS, name=lambda item: item["host"], document=document(report)
    )
    code = exit_code(report)
    for line in verdict(report):
        if code:
            render.note(line)
        else:
            render.say(settings, line)
    return code


def on_a_terminal() -> bool:
    """Whether stderr is a terminal that can show a live view."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
