"""`qctl pause` and `qctl resume`: turn consumers off and on, and show the proof of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import completion, quiet, render
from qctl.cli.confirm import confirm
from qctl.cli.ending import ends_at_s, nothing_given
from qctl.cli.options import Duration, Settings, pass_settings
from qctl.cli.progress import Progress
from qctl.cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Callable

    from qctl.control.verdict import Verdict
    from qctl.inventory.model import Inventory
    from qctl.ops.pausing import Order, Report
    from qctl.ops.targets import Selection

DEFAULT_TIMEOUT_S = 5.0


def _common(command: Callable[..., int]) -> Callable[..., int]:
    """The arguments and options that both commands have."""
    for decorate in reversed(
        (
            click.argument("target", nargs=-1, shell_complete=completion.target),
            click.option(
                "--consumer", metavar="C", shell_complete=completion.consumer, help="This consumer, on every host."
            ),
            click.option("--queue", metavar="Q", shell_complete=completion.queue, help="What takes from this queue."),
            click.option("--tag", metavar="TAG", help="The consumer with this tag, of one process."),
            click.option("--group", metavar="G", shell_complete=completion.group, help="The hosts of this group."),
            click.option("--reason", metavar="TEXT", help="Why; shown to everybody who looks."),
            click.option("--dry-run", is_flag=True, help="Show what it concerns; contact nobody."),
            click.option("--yes", "-y", is_flag=True, help="Do not ask."),
            click.option(
                "--timeout",
                metavar="DURATION",
                type=Duration(),
                default=DEFAULT_TIMEOUT_S,
                help="How long the proof may take. Default: 5s.",
            ),
            click.option("--local", is_flag=True, help="By this machine's worker, without the broker; one host."),
            click.option(
                "--state-dir",
                metavar="D",
                type=click.Path(path_type=Path),
                help="With --local: where the worker keeps its state, as for `worker start`.",
            ),
        )
    ):
        command = decorate(command)
    return command


@click.command()
@_common
@click.option("--for", "duration", metavar="DURATION", type=Duration(), help="It ends by itself after so long.")
@click.option("--until", metavar="TIME", help="It ends by itself then: 14:00, or 2026-11-23T14:00, or with a zone.")
@click.option("--wait", is_flag=True, help="Wait also until what runs is over.")
@pass_settings
def pause(settings: Settings, /, duration: float | None, until: str | None, wait: bool, **options: Any) -> int:
    """Pause consumers, and prove it: from the acknowledgement on no task of them starts, until it is resumed.

    \b
    TARGET  web-1/timeline   one consumer of one host
            web-1            all of a host
            */timeline       a consumer on every host, also on those that come later

    Options narrow the targets. It holds over crashes, restarts and reboots. Exit 0: all that is alive has proven it;
    3: a part has not, and the rows say which; 1: nothing is proven; 75: the broker is blocked, nothing was given.
    """
    until_s = ends_at_s(duration, until)
    return _carry_out(settings, "pause", until_s=until_s, duration_s=duration, wait=wait, **options)


@click.command()
@_common
@pass_settings
def resume(settings: Settings, /, **options: Any) -> int:
    """Lift pauses, and show what each consumer does now; what of a pause is about others stays.

    TARGET and options are those of `qctl pause`. A consumer may go on being held, for want of quota, or paused by
    another command, which is named.
    """
    return _carry_out(settings, "resume", until_s=None, duration_s=None, wait=False, **options)


def _carry_out(
    settings: Settings,
    verb: str,
    *,
    until_s: float | None,
    duration_s: float | None,
    wait: bool,
    target: tuple[str, ...],
    consumer: str | None,
    queue: str | None,
    tag: str | None,
    group: str | None,
    reason: str | None,
    dry_run: bool,
    yes: bool,
    timeout: float,
    local: bool,
    state_dir: Path | None,
) -> int:
    from qctl.ops.targets import Words, select
    from qctl.ops.wording import MAX_REASON_CHARS, ending

    if reason is not None and len(reason) > MAX_REASON_CHARS:
        raise click.UsageError(f"--reason is at most {MAX_REASON_CHARS} characters")
    if state_dir is not None and not local:
        raise click.UsageError("--state-dir goes with --local")
    if wait and local:
        raise click.UsageError("--wait needs the broker; it does not go with --local")
    with nothing_given():
        inventory = settings.load()
        selection = select(inventory, Words(target, consumer, queue, tag, group))
        if local:
            _check_local(selection)
        if dry_run:
            return _show_selection(settings, verb, selection, until_s)
        _confirm(inventory, verb, selection, ending(until_s, duration_s), yes=yes)
        if duration_s is not None:
            until_s = ends_at_s(duration_s, None)  # from now on, and not from the question

        from qctl.control.event import Verb
        from qctl.ops import pausing

        wanted = pausing.order(Verb(verb), selection, reason=reason, until_s=until_s)
    if local:
        return _run_locally(settings, wanted, state_dir, timeout_s=timeout)
    import asyncio

    wait_s = pausing.wait_s(inventory, selection) if wait else None
    return asyncio.run(_gather(settings, inventory, wanted, timeout_s=timeout, wait_s=wait_s))


def _run_locally(settings: Settings, wanted: Order, state_dir: Path | None, *, timeout_s: float) -> int:
    """Give the order on this host, and print what is true, also when it is interrupted."""
    import signal

    from qctl.errors import Interrupted
    from qctl.ops.pausing import run_locally
    from qctl.worker.hostlock import state_directory

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = run_locally(wanted, state_directory(state_dir), timeout_s=timeout_s)
    _show(settings, report, int(report.exit_code))
    if report.is_interrupted:
        raise Interrupted("interrupted; the command is kept on this host and holds")
    return int(report.exit_code)


def _check_local(selection: Selection) -> None:
    """One event for one host by its name: that is all that a host may command itself."""
    if len(selection.targets) != 1 or selection.targets[0].host not in selection.hosts:
        raise click.UsageError("--local needs one TARGET that names its host, such as web-1/timeline or web-1")


def _confirm(inventory: Inventory, verb: str, selection: Selection, ending: str, *, yes: bool) -> None:
    """Ask where more than one consumer is concerned. Raises as `confirm` does."""
    from qctl.ops.wording import concerning

    if yes or len(selection.pairs) <= 1:
        return
    confirm(
        inventory,
        what=f"{verb} {concerning(selection)}{ending}",
        typed=selection.shown,
        names=[f"{host}/{consumer}" for host, consumer in selection.pairs],
        more="and on every other host that the target matches, also later" if selection.anywhere else "",
        question=f"{verb.capitalize()} them?",
    )


async def _gather(
    settings: Settings, inventory: Inventory, wanted: Order, *, timeout_s: float, wait_s: float | None
) -> int:
    """Give the order, with progress; print what is true at the end, also when it ends badly."""
    import asyncio
    import signal

    from qctl.errors import Interrupted, QctlError
    from qctl.ops import access
    from qctl.ops.pausing import Pausing

    quiet.libraries(settings)
    login, api = access.operator(inventory)
    progress = Progress(settings)
    work = Pausing(wanted, on_progress=progress.show)
    task = asyncio.ensure_future(
        work.run(
            login,
            api,
            connect_timeout_s=settings.connect_timeout_s,
            timeout_s=timeout_s,
            wait_s=wait_s,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    failure: QctlError | None = None
    try:
        await task
    except asyncio.CancelledError:
        truth = "not known to be given" if work.is_sent else "not given"
        if work.report.confirmed:
            truth = "the command was confirmed and holds"
        failure = Interrupted(f"interrupted; {truth}")
    except QctlError as error:
        failure = error
    progress.clear()
    report = work.report
    if failure is not None:
        if report.confirmed:
            _show(settings, report, int(failure.exit_code))
        raise failure from None
    _show(settings, report, int(report.exit_code))
    return int(report.exit_code)


# What is printed

COLUMNS = (
    Column("TAG", lambda row: row["tag"]),
    Column("QUEUE", lambda row: row["queue"], wide=True),
    Column("STATE", lambda row: row["state"]),
    Column("CANCEL-OK", lambda row: _clock(row["cancelled_at"])),
    Column("RUNNING", lambda row: row["running"], right=True),
    Column("GIVEN BACK", lambda row: row["given_back"], right=True),
    Column("WHY", lambda row: row["why"], free=True),
)
RESUMED_COLUMNS = tuple(column for column in COLUMNS if column.title not in ("CANCEL-OK", "GIVEN BACK"))
SELECTED_COLUMNS = (
    Column("HOST", lambda row: row["host"]),
    Column("CONSUMER", lambda row: row["consumer"]),
    Column("QUEUE", lambda row: row["queue"]),
    Column("TAG", lambda row: row["tag"]),
)


def _show_selection(settings: Settings, verb: str, selection: Selection, until_s: float | None) -> int:
    """What --dry-run says."""
    from qctl.ops.when import iso
    from qctl.ops.wording import concerning, ending, subscriptions

    items = [
        {"host": one.host, "consumer": one.consumer, "queue": one.queue, "tag": tag}
        for one, tag in zip(selection.expected, subscriptions(selection), strict=True)
    ]
    targets = [target.to_json() for target in selection.targets]
    document = {"v": 1, "verb": verb, "dry_run": True, "until": iso(until_s), "targets": targets, "items": items}
    render.show(settings, items=items, columns=SELECTED_COLUMNS, name=lambda row: row["tag"], document=document)
    more = "; also hosts that the inventory does not name" if selection.anywhere else ""
    render.say(settings, f"would {verb} {concerning(selection)}{ending(until_s)}{more}; nothing was given")
    return 0


def _show(settings: Settings, report: Report, exit_code: int) -> None:
    """What is true in the end. exit_code: of the process, an error's where it ends with one."""
    from qctl.ops.when import iso
    from qctl.ops.wording import paused

    wanted = report.order
    items = [_item(row) for row in report.rows]
    document = {
        "v": 1,
        "verb": str(wanted.verb),
        "dry_run": False,
        "local": report.local,
        "by": report.user or None,
        "as": wanted.claimed_by,
        "reason": wanted.reason,
        "until": iso(wanted.until_s),
        "confirmed_at": iso(report.confirmed_at_s),
        "events": [{"id": one.id, "target": one.target.to_json()} for one in report.confirmed],
        "exit_code": exit_code,
        "notes": list(report.notes),
        "items": items,
    }
    columns = COLUMNS if wanted.verb == "pause" else RESUMED_COLUMNS
    render.show(settings, items=items, columns=columns, name=lambda row: row["tag"], document=document)
    for note in report.notes:
        render.say(settings, f"qctl: {note}")
    render.say(settings, paused(report))


def _item(row: Verdict) -> dict[str, Any]:
    from qctl.ops.when import iso

    return {
        "host": row.host,
        "consumer": row.consumer,
        "queue": row.queue,
        "tag": row.tag,
        "state": row.state,
        "proof": str(row.standing),
        "why": row.words or None,
        "cancelled_at": iso(row.cancelled_at_s),
        "running": row.running,
        "given_back": row.given_back,
        "may_start_until": iso(row.may_start_until_s),
        "remains": [
            {"id": one.id, "target": one.target, "by": one.by, "reason": one.reason, "until": one.until}
            for one in row.remains
        ],
    }


def _clock(iso: str | None) -> str | None:
    """An instant of JSON as a clock in the operator's zone, to the millisecond."""
    from datetime import datetime

    return None if iso is None else f"{datetime.fromisoformat(iso).astimezone():%H:%M:%S.%f}"[:-3]
