"""`qctl plan`: when queues will be empty and quotas run out, as things are or as they might be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qctl.cli import completion, render
from qctl.cli.options import Output, Settings, pass_settings
from qctl.cli.render import Column

if TYPE_CHECKING:
    from qctl.ops.plan import Plan


@click.command()
@click.option(
    "--set",
    "sets",
    metavar="HOST/QUOTA=RATE",
    multiple=True,
    shell_complete=completion.host_quota,
    help="As if this limit held: 100/h, or several with commas: 300/15m,20000/h. `*` stands for any characters; "
    "of two that name the same quota the last holds.",
)
@click.option(
    "--add-host",
    "added",
    metavar="NAME/QUOTA=RATE",
    multiple=True,
    shell_complete=completion.new_host_quota,
    help="As if there were one more host with this limit, or several: web-[41-50]/twitter=20000/h.",
)
@click.option(
    "--pause",
    "paused",
    metavar="TARGET",
    multiple=True,
    shell_complete=completion.target,
    help="As if this were paused from now on: HOST/CONSUMER, HOST or */CONSUMER, as for `qctl pause`.",
)
@pass_settings
def plan(settings: Settings, sets: tuple[str, ...], added: tuple[str, ...], paused: tuple[str, ...]) -> None:
    """Say when each queue will be empty, and when each quota runs out and returns.

    From the tasks that wait, what they cost, the limits that hold and what is used of them, how long tasks take, pauses
    and holds; simulated with the workers' own rules. Nothing is changed by it. What nobody knows is assumed, and said.
    The options may be given several times, and together. An added host runs what the first host of the inventory that
    spends the quota runs. -o name prints the queues, -o json the instants in UTC.
    """
    from qctl.ops.plan_question import question

    inventory = settings.load()
    asked = question(inventory, sets=sets, added=added, paused=paused)

    import asyncio

    from qctl.cli import quiet
    from qctl.ops import plan as ahead
    from qctl.ops.sources import listen_to

    quiet.libraries(settings)
    heard = asyncio.run(listen_to(inventory, ahead=True, connect_timeout_s=settings.connect_timeout_s))
    if heard.blocked:
        render.say(settings, "qctl: the broker takes no publishes (memory or disk alarm): nothing is heard of workers")
    show(settings, ahead.plan(heard, inventory, asked))


def show(settings: Settings, found: Plan) -> None:
    """Print it as `-o` says."""
    from qctl.ops.plan import document

    whole = document(found)
    if settings.output not in (Output.TABLE, Output.WIDE):
        items = whole["queues"] + ([] if settings.output is Output.NAME else whole["quotas"])
        render.show(settings, items=items, columns=(), name=lambda item: item["queue"], document=whole)
        return
    wide = settings.output is Output.WIDE
    if found.unheard:  # what all the rest stands on
        render.line(f"assumed: {found.assumed[0]}")
        render.line()
    sections = [(queue_columns(found.at_s), found.queues), (quota_columns(found.at_s), found.quotas)]
    for number, (columns, rows) in enumerate((columns, rows) for columns, rows in sections if rows):
        if number:
            render.line()
        render.table(settings, [one for one in columns if wide or not one.wide], [{"row": row} for row in rows])
    for text in sentences(found):
        render.line(text)
    for note in found.notes:
        render.say(settings, f"qctl: {note}")


def sentences(found: Plan) -> list[str]:
    """What the tables do not say."""
    lines = [""]
    if (first := found.first_out) is not None:
        lines.append(f"{first.address} runs out first: {_when(first.out_at_s, found.at_s)}")
    elif found.quotas:
        lines.append("no quota runs out")
    lines += [f"assumed: {text}" for text in found.assumed[found.unheard :]]
    return lines


def queue_columns(now_s: float) -> tuple[Column, ...]:
    """Of the queues."""
    return (
        Column("QUEUE", lambda item: item["row"].queue),
        Column("READY", lambda item: item["row"].tasks, right=True),
        Column("IN WORKERS", lambda item: item["row"].in_workers, right=True, wide=True),
        Column("IN/S", lambda item: _rate(item["row"].in_per_s), right=True),
        Column("EMPTY", lambda item: _when(item["row"].empty_at_s, now_s) or f"never ({item['row'].never})"),
        Column("BY", lambda item: ", ".join(f"{host} {tasks}" for host, tasks in item["row"].by_host), free=True),
        Column("WHY", lambda item: item["row"].words, free=True),
    )


def quota_columns(now_s: float) -> tuple[Column, ...]:
    """Of the quotas."""
    return (
        Column("QUOTA", lambda item: item["row"].address + (" (what if)" if item["row"].asked else "")),
        Column("LIMIT", lambda item: ", ".join(item["row"].rates)),
        Column("USED", lambda item: _of(item["row"].used_units, item["row"].limit_units), right=True),
        Column("RUNS OUT", lambda item: _when(item["row"].out_at_s, now_s)),
        Column("RETURNS", lambda item: _when(item["row"].returns_at_s, now_s)),
        Column("SPENDS", lambda item: item["row"].units, right=True),
        Column("IN AN HOUR", lambda item: item["row"].hour_units, right=True, wide=True),
    )


def _when(at_s: float | None, now_s: float) -> str:
    from qctl.ops.when import clock, span

    if at_s is None:
        return ""
    return "now" if at_s <= now_s else f"{clock(at_s, now_s=now_s)} (in {span(at_s - now_s)})"


def _of(part: int | None, whole: int | None) -> str:
    return "" if part is None else f"{part}/{'?' if whole is None else whole}"


def _rate(per_s: float | None) -> str:
    return "" if per_s is None else f"{per_s:.1f}"
