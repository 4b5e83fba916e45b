"""`qctl enqueue`: put tasks into a consumer's queue, and say exactly what was confirmed."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import completion, quiet, render
from qctl.cli.options import Duration, Output, Settings, pass_settings
from qctl.cli.progress import Progress
from qctl.units import MAX_UNITS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from qctl.broker.request import Request
    from qctl.inventory.model import Inventory
    from qctl.ops.enqueue import Report
    from qctl.ops.lines import Line


class Units(click.ParamType[tuple[str, int]]):
    """`QUOTA=N`."""

    name = "quota=n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        quota, equals, units = str(value).partition("=")
        if not equals or not (units.isascii() and units.isdecimal()) or len(units) > 13 or int(units) > MAX_UNITS:
            self.fail(f"expected QUOTA=N with a whole number N from 0 to 10^12, found {value!r}", param, ctx)
        return quota, int(units)


FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


@click.command()
@click.argument("consumer", shell_complete=completion.consumer)
@click.argument("payload", metavar="[JSON]...", nargs=-1)
@click.option("--file", "-f", "source", metavar="F", type=FILE, help="JSON lines, a task each; - is stdin.")
@click.option("--host", metavar="H", shell_complete=completion.host, help="Only this host may run it (`directed`).")
@click.option("--cost", metavar="QUOTA=N", type=Units(), multiple=True, help="Units it needs, if not as declared.")
@click.option("--type", "kind", metavar="NAME", help="The task's name, for consumers with several handlers.")
@click.option("--id", "identity", metavar="ID", help="The message id of a single task. Default: a random one.")
@click.option("--delay", metavar="DURATION", type=Duration(), help="Not before; rounded up to a rung of the ladder.")
@click.option("--skip", metavar="N", type=click.IntRange(0), default=0, help="Leave out the first N lines of --file.")
@pass_settings
def enqueue(
    settings: Settings,
    consumer: str,
    payload: tuple[str, ...],
    source: str | None,
    host: str | None,
    cost: tuple[tuple[str, int], ...],
    kind: str | None,
    identity: str | None,
    delay: float | None,
    skip: int,
) -> int:
    """Put tasks into the queue of CONSUMER, each argument or line one JSON value.

    Every task is confirmed by the broker. A broker that is lost on the way is tried again for 60 s, and what was
    unconfirmed is sent once more under the same id. However it ends, the last line says what is true and how to go on.
    """
    import asyncio

    from qctl.broker.request import request
    from qctl.ops import lines

    _check_usage(payload, source, identity, skip)
    if twice := next((quota for quota, _ in cost if [name for name, _ in cost].count(quota) > 1), None):
        raise click.UsageError(f"--cost names quota {twice} twice")
    inventory = settings.load()
    wanted = request(inventory, consumer, host=host, cost=dict(cost), type=kind, id=identity, delay=delay)
    max_bytes = inventory.worker.max_body_bytes
    if source is None:
        tasks = _arguments(payload, max_bytes)
        return asyncio.run(_run(settings, inventory, wanted, _once(tasks), where="argument", skip=0))
    with ExitStack() as stack:
        stream = sys.stdin.buffer if source == "-" else stack.enter_context(Path(source).open("rb", buffering=0))
        batches = lines.read(stream, skip=skip, max_bytes=max_bytes)
        where = "<stdin>" if source == "-" else source
        return asyncio.run(_run(settings, inventory, wanted, batches, where=where, skip=skip))


def _check_usage(payload: tuple[str, ...], source: str | None, identity: str | None, skip: int) -> None:
    if source is None and not payload:
        raise click.UsageError("nothing to enqueue; give a JSON value, or --file F, or --file - for stdin")
    if source is not None and payload:
        raise click.UsageError("give JSON values or --file, not both")
    if identity is not None and (source is not None or len(payload) != 1):
        raise click.UsageError("--id names a single task; it needs exactly one JSON value")
    if skip and source is None:
        raise click.UsageError("--skip goes with --file")
    if source == "-" and sys.stdin is None:
        raise click.UsageError("there is no stdin to read from")


def _arguments(payload: tuple[str, ...], max_bytes: int) -> list[Line]:
    """The arguments as lines. All are checked before the first is sent."""
    from qctl.ops.lines import Line, check

    found = []
    for number, text in enumerate(payload, start=1):
        body = text.encode("utf-8", "surrogateescape")
        try:
            check(body, max_bytes)
        except ValueError as error:
            hint = " A string needs its quotes: '\"text\"'." if text[:1] not in '{["-' and not text.isdigit() else ""
            raise click.BadParameter(f"value {number} is {error}.{hint}", param_hint="JSON") from None
        found.append(Line(number, body))
    return found


async def _once(tasks: list[Line]) -> AsyncIterator[list[Line]]:
    yield tasks


async def _run(
    settings: Settings,
    inventory: Inventory,
    wanted: Request,
    batches: AsyncIterator[list[Line]],
    *,
    where: str,
    skip: int,
) -> int:
    """Send, with progress; print what is true at the end, also when it ends badly."""
    import asyncio
    import signal

    from qctl.broker.login import login_for
    from qctl.errors import Interrupted, Partly, QctlError
    from qctl.ops.enqueue import Enqueuer
    from qctl.ops.lines import BadLine

    quiet.libraries(settings)
    progress = Progress(settings)
    sending = Enqueuer(wanted, skip=skip, on_progress=lambda report, state: progress.show(_so_far(report), state))
    dial = lambda: login_for(inventory.broker, inventory.path, prefer_environment=True)  # noqa: E731
    task = asyncio.ensure_future(sending.run(dial, batches, settings.connect_timeout_s))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    failure: QctlError | None = None
    try:
        await task
    except asyncio.CancelledError:
        failure = Interrupted("interrupted")
    except BadLine as error:
        hint = "Mend or remove that line, then go on with the --skip above."
        failure = Partly(f"{where}:{error.number}: {error}", hint=hint)
    except QctlError as error:
        failure = error
    progress.clear()
    report = sending.report
    many = where != "argument"
    if failure is None or (many and settings.output in (Output.JSON, Output.JSONL)):
        _print(settings, report)
    if failure is not None:
        if many or report.confirmed:
            failure.message = f"{failure.message}; {_truth(report, many)}"
        raise failure from None
    return 0


def _truth(report: Report, many: bool) -> str:
    if not many:
        return f"confirmed {report.confirmed}"
    twice = f" ({report.maybe_twice} may be twice)" if report.maybe_twice else ""
    return f"confirmed {report.confirmed}; continue with --skip {report.skip}{twice}"


def _print(settings: Settings, report: Report) -> None:
    document = {
        "v": 1,
        "queue": report.queue,
        "confirmed": report.confirmed,
        "skip": report.skip,
        "maybe_twice": report.maybe_twice,
        "seconds": round(report.seconds, 3),
    }
    if settings.output in (Output.TABLE, Output.WIDE):
        render.line(f"{report.queue}: confirmed {report.confirmed}")
    else:
        render.show(settings, items=[document], columns=(), name=lambda item: item["queue"], document=document)


def _so_far(report: Report) -> str:
    """What progress says: the queue and the rate too where a terminal shows it all the time."""
    if not sys.stderr.isatty():
        return f"confirmed {report.confirmed}"
    rate = report.confirmed / report.seconds if report.seconds else 0.0
    return f"{report.queue}: confirmed {report.confirmed}, {rate:.0f}/s"
