"""`qctl quota`: the limits that hold, live; set one in place of the inventory's, and take that back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import completion, quiet, render
from qctl.cli.confirm import confirm
from qctl.cli.ending import ends_at_s, nothing_given
from qctl.cli.options import Duration, Settings, pass_settings
from qctl.cli.render import Column

if TYPE_CHECKING:
    from qctl.control.event import Command
    from qctl.errors import Exit
    from qctl.inventory.model import Inventory
    from qctl.ops.quotas import Report, Selection
    from qctl.ops.status import Status

DEFAULT_TIMEOUT_S = 5.0

COLUMNS = (
    Column("QUOTA", lambda item: f"{item['host']}/{item['quota']}"),
    Column("LIMIT", lambda item: ", ".join(item["limits"])),
    Column("PROOF", lambda item: item["proof"]),
    Column("PROCESSES", lambda item: item["processes"], right=True),
    Column("WHY", lambda item: item["why"], free=True),
)


@click.group()
def quota() -> None:
    """Show the limits that hold, and change them on running workers.

    A limit that is set holds in place of the inventory's, also over restarts and over edits of the inventory, until it
    is cleared or its time is up.
    """


@quota.command()
@click.argument("hosts", metavar="[HOST]...", nargs=-1, shell_complete=completion.host)
@pass_settings
def ls(settings: Settings, hosts: tuple[str, ...]) -> None:
    """Show each quota: what is used of which limit, when units return, who set it, and who else spends it; and what
    tasks were seen to cost, beside what the inventory declares.

    As in `qctl status`: what is not known is `-`, and `~` is an estimate.
    """
    from qctl.cli.options import Output
    from qctl.cli.status import look, quota_columns, table
    from qctl.ops.costs import judged
    from qctl.ops.status_json import cost_item, quota_item
    from qctl.ops.when import iso

    inventory = settings.load()
    for name in hosts:
        inventory.host(name)
    found = look(settings, inventory, hosts=hosts, strangers=not hosts)
    if settings.output in (Output.TABLE, Output.WIDE):
        table(settings, quota_columns(found.at_s, found.quotas), found.quotas)
        show_costs(settings, inventory, found)
        return
    items = [quota_item(row, found.at_s) for row in found.quotas]
    costs = [cost_item(cost) for cost in judged(found.quotas)]
    document = {"v": 1, "at": iso(found.at_s), "blocked": found.blocked, "notes": list(found.notes), "items": items}
    document["costs"] = costs
    render.show(settings, items=items, columns=(), name=_name, document=document)


def show_costs(settings: Settings, inventory: Inventory, found: Status) -> None:
    """What tasks were seen to cost, and where the inventory declares something else, the line to write there."""
    from qctl.cli.options import Output
    from qctl.ops import costs

    seen = costs.judged(found.quotas)
    if not seen:
        return

    def advice(item: Any) -> str:
        consumer = inventory.consumers.get(item["row"].consumer)
        return costs.advice(item["row"], consumer.cost if consumer else {})

    columns = (
        Column("TASKS OF", lambda item: item["row"].consumer),
        Column("TYPE", lambda item: item["row"].type),
        Column("QUOTA", lambda item: item["row"].quota),
        Column("DECLARED", lambda item: item["row"].declared, right=True),
        Column("P50", lambda item: item["row"].p50, right=True),
        Column("P95", lambda item: item["row"].p95, right=True),
        Column("SEEN", lambda item: item["row"].tasks, right=True),
        Column("COST IS", lambda item: costs.words(item["row"]) or "right", free=True),
        Column("WRITE", advice),
        Column("HOSTS", lambda item: len(item["row"].hosts), right=True, wide=True),
    )
    render.line()
    render.table(
        settings,
        [column for column in columns if not column.wide or settings.output is Output.WIDE],
        [{"row": cost} for cost in seen],
    )


def _common(command: Callable[..., int]) -> Callable[..., int]:
    """The options of what changes a limit."""
    timeout = click.option(
        "--timeout",
        metavar="DURATION",
        type=Duration(),
        default=DEFAULT_TIMEOUT_S,
        help="How long the proof may take. Default: 5s.",
    )
    for decorate in (
        timeout,
        click.option("--yes", "-y", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Show what it concerns; contact nobody."),
        click.option("--reason", metavar="TEXT", help="Why; shown to everybody who looks."),
    ):
        command = decorate(command)
    return command


@quota.command(name="set")
@click.argument("named", metavar="HOST/QUOTA", shell_complete=completion.host_quota)
@click.argument("rates", metavar="RATE...", nargs=-1, required=True)
@click.option("--for", "duration", metavar="DURATION", type=Duration(), help="It ends by itself after so long.")
@click.option("--until", metavar="TIME", help="It ends by itself then: 14:00, or 2026-11-23T14:00, or with a zone.")
@_common
@pass_settings
def set_(
    settings: Settings,
    /,
    named: str,
    rates: tuple[str, ...],
    duration: float | None,
    until: str | None,
    **options: Any,
) -> int:
    """Set the limit of a quota on a host, in place of the inventory's: 100/h, or several that all must admit.

    `*` stands for any characters: '*/twitter' is that quota on every host, also on those that come later. It binds at
    once, also what is leased already. Exit 0: all that is alive has proven it; 3: a part has not; 1: nothing is proven;
    75: the broker is blocked, nothing was given.
    """
    until_s = ends_at_s(duration, until)
    return _change(settings, "quota.set", named, rates=rates, until_s=until_s, duration_s=duration, **options)


@quota.command()
@click.argument("named", metavar="HOST/QUOTA", shell_complete=completion.host_quota)
@_common
@pass_settings
def clear(settings: Settings, /, named: str, **options: Any) -> int:
    """Take back what was set: the inventory's limit holds again, or what else was set.

    HOST/QUOTA as for `qctl quota set`; of a setting that names more, the rest stays.
    """
    return _change(settings, "quota.clear", named, rates=(), until_s=None, duration_s=None, **options)


def _change(
    settings: Settings,
    verb: str,
    named: str,
    *,
    rates: tuple[str, ...],
    until_s: float | None,
    duration_s: float | None,
    reason: str | None,
    dry_run: bool,
    yes: bool,
    timeout: float,
) -> int:
    from qctl.control.event import Verb
    from qctl.ops import quotas, wording

    if reason is not None and len(reason) > wording.MAX_REASON_CHARS:
        raise click.UsageError(f"--reason is at most {wording.MAX_REASON_CHARS} characters")
    limits = quotas.rates_of(rates)
    inventory = settings.load()
    selection = quotas.select(inventory, named)
    what = wording.limits(Verb(verb), selection, limits, until_s)
    for warning in wording.warnings(inventory, selection, limits):
        render.say(settings, f"qctl: warning: {warning}")
    if dry_run:
        return _show_selection(settings, inventory, verb, selection, limits, until_s)
    if not yes:
        more = "and on every other host that matches, also later" if selection.anywhere else ""
        with nothing_given():
            confirm(inventory, what=what, typed=str(selection), names=wording.listed(inventory, selection), more=more)
        if duration_s is not None:  # it lasts so long from the answer on, however long that took
            until_s = ends_at_s(duration_s, None)
            what = wording.limits(Verb(verb), selection, limits, until_s)
    return _run(settings, inventory, selection, _command(verb, selection, limits, reason, until_s), what, timeout)


def _command(
    verb: str, selection: Selection, limits: tuple[str, ...], reason: str | None, until_s: float | None
) -> Command:
    import secrets
    import time

    from qctl.control.event import Verb
    from qctl.ops import quotas
    from qctl.ops.claim import claim

    return quotas.command(
        selection,
        Verb(verb),
        identity=secrets.token_hex(16),
        now_s=time.time(),
        rates=limits,
        reason=reason,
        until_s=until_s,
        claimed_by=claim(),
    )


def _run(
    settings: Settings, inventory: Inventory, selection: Selection, command: Command, what: str, timeout_s: float
) -> int:
    import asyncio

    return asyncio.run(_gather(settings, inventory, selection, command, what, timeout_s))


async def _gather(
    settings: Settings, inventory: Inventory, selection: Selection, command: Command, what: str, timeout_s: float
) -> int:
    """Give the command; print what is true at the end, also when it ends badly."""
    import asyncio
    import signal

    from qctl.errors import Interrupted, QctlError
    from qctl.ops import access
    from qctl.ops.quotas import Setting

    quiet.libraries(settings)
    login, api = access.operator(inventory)
    work = Setting(selection, command)
    task = asyncio.ensure_future(
        work.run(login, api, connect_timeout_s=settings.connect_timeout_s, timeout_s=timeout_s)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    failure: QctlError | None = None
    try:
        await task
    except asyncio.CancelledError:
        truth = "the command was confirmed and holds" if work.report.confirmed else "not known to be given"
        failure = Interrupted(f"interrupted; {truth}")
    except QctlError as error:
        failure = error
    if work.report.confirmed:
        _show(settings, work.report, what, failure.exit_code if failure else work.report.exit_code)
    if failure is not None:
        raise failure from None
    return int(work.report.exit_code)


# What is printed


def _show_selection(
    settings: Settings,
    inventory: Inventory,
    verb: str,
    selection: Selection,
    limits: tuple[str, ...],
    until_s: float | None,
) -> int:
    """What --dry-run says."""
    from qctl.control.event import Verb
    from qctl.ops.when import iso
    from qctl.ops.wording import limits as in_words

    items = [
        {"host": host, "quota": name, "inventory_limits": list(map(str, inventory.hosts[host].quotas[name].limits))}
        for host, name in selection.pairs
    ]
    document = {
        "v": 1,
        "verb": verb,
        "dry_run": True,
        "target": str(selection),
        "limits": list(limits),
        "until": iso(until_s),
        "items": items,
    }
    columns = (COLUMNS[0], Column("INVENTORY", lambda item: ", ".join(item["inventory_limits"])))
    render.show(settings, items=items, columns=columns, name=_name, document=document)
    more = "; also on hosts that the inventory does not name" if selection.anywhere else ""
    render.say(settings, f"would {in_words(Verb(verb), selection, limits, until_s)}{more}; nothing was given")
    return 0


def _show(settings: Settings, report: Report, what: str, code: Exit) -> None:
    """code: with which the command ends, which an error or an interrupt may decide."""
    from qctl.ops.when import iso
    from qctl.ops.wording import limited

    command = report.command
    items = [
        {
            "host": row.host,
            "quota": row.quota,
            "proof": str(row.standing),
            "limits": list(row.limits),
            "override": row.override if row.limits else None,
            "processes": row.processes,
            "why": row.words or None,
        }
        for row in report.verdicts
    ]
    document = {
        "v": 1,
        "verb": str(command.verb),
        "dry_run": False,
        "target": str(report.selection),
        "id": command.id,
        "by": report.user,
        "as": command.claimed_by,
        "limits": list(command.rates),
        "reason": command.reason,
        "until": iso(command.until_s),
        "exit_code": int(code),
        "notes": list(report.notes),
        "items": items,
    }
    render.show(settings, items=items, columns=COLUMNS, name=_name, document=document)
    for note in report.notes:
        render.say(settings, f"qctl: {note}")
    render.say(settings, limited(report, what))


def _name(item: Any) -> str:
    return f"{item['host']}/{item['quota']}"
