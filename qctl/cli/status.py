"""`qctl status`: hosts, consumers, quotas and queues, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import completion, render
from qctl.cli.options import Output, Settings, pass_settings
from qctl.cli.render import Column

if TYPE_CHECKING:
    from qctl.inventory.model import Inventory
    from qctl.ops.status import ConsumerRow, HostRow, QuotaRow, Seen, Status

#: Of a queue's name in a table; -o json and -o name have it whole.
MAX_NAME_CHARS = 80
#: Consumers that are named in a remark.
MAX_NAMED = 3


@click.command()
@click.argument("hosts", metavar="[HOST]...", nargs=-1, shell_complete=completion.host)
@pass_settings
def status(settings: Settings, hosts: tuple[str, ...]) -> None:
    """Show hosts, consumers, quotas and queues once; of these hosts, or of all.

    What workers say of themselves is a second old or says how old it is; what is not known is `-`, never 0. `~` is an
    estimate. -o name prints HOST/CONSUMER, a line each.
    """
    inventory = settings.load()
    for name in hosts:
        inventory.host(name)
    found = look(settings, inventory, hosts=hosts, strangers=not hosts)
    show(settings, found)
    if settings.output in (Output.TABLE, Output.WIDE):
        say_of_costs(settings, found)


def say_of_costs(settings: Settings, found: Status) -> None:
    """Where the inventory declares a cost that tasks do not have, which `qctl quota ls` shows."""
    from qctl.ops.costs import judged

    wrong = dict.fromkeys(cost.consumer for cost in judged(found.quotas) if cost.wrong)
    if wrong:
        names = ", ".join(list(wrong)[:MAX_NAMED]) + (f" and {len(wrong) - MAX_NAMED} more" * (len(wrong) > MAX_NAMED))
        render.say(settings, f"qctl: tasks of {names} do not cost what the inventory declares; see `qctl quota ls`")


def look(settings: Settings, inventory: Inventory, *, hosts: Sequence[str] = (), strangers: bool = False) -> Status:
    """The fleet as it is now, listened to for about a second; what could not be learnt is said on stderr."""
    import asyncio

    from qctl.cli import quiet
    from qctl.ops.picture import picture
    from qctl.ops.sources import listen_to

    quiet.libraries(settings)
    timeout_s = settings.connect_timeout_s
    found = asyncio.run(listen_to(inventory, hosts=hosts, strangers=strangers, connect_timeout_s=timeout_s))
    if found.blocked:
        render.say(settings, "qctl: the broker takes no publishes (memory or disk alarm): nothing is heard of workers")
    for note in found.notes:
        render.say(settings, f"qctl: {note}")
    return picture(found, inventory, hosts=hosts)


def show(settings: Settings, found: Status) -> None:
    """Print the whole as `-o` says."""
    from qctl.ops.status_json import document

    whole = document(found)
    match settings.output:
        case Output.TABLE | Output.WIDE:
            sections = [
                (host_columns(found.at_s), found.hosts),
                (consumer_columns(found.at_s), found.consumers),
                (quota_columns(found.at_s, found.quotas), found.quotas),
                (queue_columns(found.at_s), found.queues),
            ]
            for number, (columns, rows) in enumerate((columns, rows) for columns, rows in sections if rows):
                if number:
                    render.line()
                table(settings, columns, rows)
        case _:
            items = [item for kind in ("hosts", "consumers", "quotas", "queues") for item in whole[kind]]
            if settings.output is Output.NAME:
                items = whole["consumers"]
            render.show(settings, items=items, columns=(), name=_address, document=whole)


def table(settings: Settings, columns: Sequence[Column], rows: Iterable[Any]) -> None:
    """A table of rows as they are in a Status; its columns find each under `row`."""
    shown = [column for column in columns if not column.wide or settings.output is Output.WIDE]
    render.table(settings, shown, [{"row": row} for row in rows])


def _address(item: Any) -> str:
    return f"{item['host']}/{item['consumer']}"


def host_columns(now_s: float) -> tuple[Column, ...]:
    """Of the hosts."""
    return (
        Column("HOST", lambda item: item["row"].host + ("" if item["row"].listed else " (not in the inventory)")),
        Column("STATE", lambda item: item["row"].words),
        Column("SINCE", lambda item: _clock(item["row"].since_s, now_s)),
        Column("PROCESSES", lambda item: _processes(item["row"].heard, item["row"].processes), right=True),
        Column("HEARD", lambda item: _age(item["row"].seen, now_s), right=True),
        Column("MACHINE", lambda item: item["row"].machine, wide=True),
        Column("WHY", lambda item: _why(item["row"]), free=True),
    )


def consumer_columns(now_s: float) -> tuple[Column, ...]:
    """Of the consumers."""
    counted = [
        Column(what.upper().replace("_", " "), _counted(what), right=True, wide=True)
        for what in ("acked", "retried", "deferred", "dead", "given_back")
    ]
    return (
        Column("CONSUMER", lambda item: item["row"].address),
        Column("STATE", lambda item: _state(item["row"])),
        Column("SINCE", lambda item: _clock(item["row"].since_s, now_s)),
        Column("BY", lambda item: ", ".join(dict.fromkeys(pause.by for pause in item["row"].pauses))),
        Column("UNTIL", lambda item: _until(item["row"], now_s), wide=True),
        Column("RUNNING", lambda item: _of(item["row"].running, item["row"].concurrency), right=True),
        Column("WAITING", lambda item: item["row"].waiting, right=True, wide=True),
        Column("RATE/S", lambda item: _rate(item["row"].rate_per_s), right=True),
        *counted,
        Column("QUEUE", lambda item: item["row"].queue, wide=True),
        Column("HEARD", lambda item: _age(item["row"].seen, now_s), right=True),
        Column("WHY", lambda item: _why(item["row"]), free=True),
    )


def quota_columns(now_s: float, rows: Sequence[QuotaRow]) -> tuple[Column, ...]:
    """Of the quotas; what is out of the ordinary has a column where there is any of it."""
    from qctl.control.quota_reading import SLIDING
    from qctl.ops.spending import SOMEBODY_ELSE, in_short, shown, window_words

    at = partial(_clock, now_s=now_s)
    windows = Column("WINDOW", lambda item: window_words(item["row"], at), free=True)
    others = Column(
        SOMEBODY_ELSE.upper(),
        lambda item: in_short(foreign, item["row"].limit_units, at) if (foreign := shown(item["row"].foreign)) else "",
        free=True,
    )
    return (
        Column("QUOTA", lambda item: item["row"].address),
        Column("USED", lambda item: _of(item["row"].used_units, item["row"].limit_units), right=True),
        Column("LIMIT", lambda item: ", ".join(item["row"].rates)),
        Column(
            "RATE/S",
            lambda item: _rate(item["row"].spend_per_s, estimated=item["row"].spend_estimated),
            right=True,
        ),
        Column("LASTS", lambda item: _lasts(item["row"], now_s), right=True, free=True),
        Column("RETURNS", lambda item: _returns(item["row"], now_s)),
        Column("HEARD", lambda item: _age(item["row"].seen, now_s), right=True),
        *([windows] if any(row.window != SLIDING for row in rows) else []),
        *([others] if any(shown(row.foreign) for row in rows) else []),
        Column("OVERRIDE", lambda item: override_words(item["row"], now_s), free=True),
        Column("INVENTORY", lambda item: ", ".join(item["row"].inventory_rates), wide=True),
        Column("FAULT", lambda item: item["row"].fault, wide=True, free=True),
    )


def queue_columns(now_s: float) -> tuple[Column, ...]:
    """Of the queues."""
    return (
        Column("QUEUE", lambda item: _cut(item["row"].queue)),
        Column("READY", lambda item: item["row"].ready, right=True),
        Column("UNACKED", lambda item: item["row"].unacked, right=True),
        Column("IN/S", lambda item: _rate(item["row"].in_per_s), right=True),
        Column("OUT/S", lambda item: _rate(item["row"].out_per_s, estimated=item["row"].out_estimated), right=True),
        Column("EMPTY", lambda item: _clock(item["row"].empty_at_s, now_s)),
        Column("CONSUMERS", lambda item: len(item["row"].consumers) if item["row"].work else None, right=True),
        Column("WHY", lambda item: item["row"].why, wide=True, free=True),
    )


def _cut(name: str) -> str:
    """A name that leaves room for numbers: one of 255 characters would move those of every other row away."""
    shown = render.plain(name)
    return shown if len(shown) <= MAX_NAME_CHARS else f"{shown[: MAX_NAME_CHARS - 1]}…"


def override_words(row: QuotaRow, now_s: float) -> str:
    """Who set the limit, until when and why; "" when nobody did."""
    override = row.override
    if override is None:
        return ""
    until = f" until {_clock(override.until_s, now_s)}" if override.until_s is not None else ""
    return f"by {override.by or '?'}{until}{f': {override.reason}' if override.reason else ''}"


def _counted(what: str) -> Callable[[Any], object]:
    return lambda item: (item["row"].settled or {}).get(what)


def _state(row: ConsumerRow) -> str:
    from qctl.ops.status import in_words

    return in_words(row.state, row.why)


def _why(row: HostRow | ConsumerRow) -> str:
    """The cause, unless the state says it already."""
    from qctl.ops.status import in_words

    return "" if row.why and row.why in in_words(row.state, row.why) else row.why


def _until(row: ConsumerRow, now_s: float) -> str:
    """When the pauses, or else the holds, may be over: the last of them, "" when one of them does not say."""
    ends = [pause.until_s for pause in row.pauses] or [hold.until_s for hold in row.holds]
    known = [end for end in ends if end is not None]
    return _clock(max(known), now_s) if known and len(known) == len(ends) else ""


def _lasts(row: QuotaRow, now_s: float) -> str:
    from qctl.ops.when import span

    if row.exhausted_at_s is None:
        return ""
    limit = f" of {row.exhausted_rate}" if row.exhausted_rate and len(row.rates) > 1 else ""
    return f"~{span(row.exhausted_at_s - now_s)}{limit}"


def _returns(row: QuotaRow, now_s: float) -> str:
    """When units return; of one that somebody waits for, when there is enough for a task."""
    at = _clock(row.back_at_s, now_s)
    return f"back {at}" if at and (row.dry or row.blocked_until_s is not None) else at


def _clock(at_s: float | None, now_s: float) -> str:
    from qctl.ops.when import clock

    return "" if at_s is None else clock(at_s, now_s=now_s)


def _age(seen: Seen | None, now_s: float) -> str:
    from qctl.ops.when import span

    return "" if seen is None else f"{span(max(0.0, now_s - seen.at_s))} ago"


def _of(part: int | None, whole: int | None) -> str:
    return "" if part is None else f"{part}/{'?' if whole is None else whole}"


def _processes(heard: int, whole: int | None) -> str:
    return f"{heard}/{whole}" if whole is not None else ""


def _rate(per_s: float | None, *, estimated: bool = False) -> str:
    return "" if per_s is None else f"{'~' if estimated else ''}{per_s:.1f}"
