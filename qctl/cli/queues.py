"""`qctl queues`: which there are and how deep, what is in one, and emptying one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qctl.cli import completion, quiet, render
from qctl.cli.confirm import check_can_ask, confirm
from qctl.cli.messages import body_text, message_block
from qctl.cli.options import Output, Settings, pass_settings
from qctl.cli.render import Column

if TYPE_CHECKING:
    from qctl.ops.peek import Looked, Message


@click.group()
def queues() -> None:
    """Show queues, look at their messages without taking any, and empty one."""


@queues.command()
@click.option("--work", is_flag=True, help="Only queues that consumers take tasks from.")
@click.option("--all", "every", is_flag=True, help="Every queue of the virtual host; needs the management API.")
@pass_settings
def ls(settings: Settings, work: bool, every: bool) -> None:
    """Show queues: tasks that wait, tasks in hand, rates, and when each is empty.

    Work queues, and of qctl's own those that hold something. Rates and what is in hand are the management API's, up
    to five seconds old; without it they are `-`.
    """
    import asyncio

    from qctl.cli.status import queue_columns, table
    from qctl.ops.queues import Scope, listed
    from qctl.ops.status_json import queue_item
    from qctl.ops.when import iso

    if work and every:
        raise click.UsageError("give --work or --all, not both")
    scope = Scope.WORK if work else Scope.ALL if every else Scope.OURS
    inventory = settings.load()
    quiet.libraries(settings)
    found = asyncio.run(listed(inventory, scope, connect_timeout_s=settings.connect_timeout_s))
    for note in found.notes:
        render.say(settings, f"qctl: {note}")
    if settings.output in (Output.TABLE, Output.WIDE):
        table(settings, queue_columns(found.at_s), found.rows)
        return
    items = [queue_item(row) for row in found.rows]
    document = {"v": 1, "at": iso(found.at_s), "notes": list(found.notes), "items": items}
    render.show(settings, items=items, columns=(), name=lambda item: item["queue"], document=document)


@queues.command()
@click.argument("queue", shell_complete=completion.any_queue)
@click.option("--count", "-n", metavar="N", type=click.IntRange(1, 1_000), default=10, help="At most so many.")
@pass_settings
def peek(settings: Settings, queue: str, count: int) -> None:
    """Look at the first messages of QUEUE; all stay where they are. Of a stream, its oldest.

    While it looks, others do not get them. It says when a look changes something: the mark that they were delivered
    before, or their order. It is refused (5) on a queue that gives messages up after few deliveries, since a look is
    one.
    """
    import asyncio

    from qctl.ops.peek import look

    inventory = settings.load()
    quiet.libraries(settings)
    found = asyncio.run(look(inventory, queue, count, connect_timeout_s=settings.connect_timeout_s))
    _show_messages(settings, found)
    for note in found.notes:
        render.say(settings, f"qctl: {note}")
    more = found.waiting - len(found.messages)
    if more > 0 and found.kind != "stream":
        render.say(settings, f"{queue}: {len(found.messages)} of {found.waiting} messages")


def _show_messages(settings: Settings, found: Looked) -> None:
    items = [_item(one) for one in found.messages]
    match settings.output:
        case Output.TABLE:
            columns = (
                Column("#", lambda item: item["place"], right=True),
                Column("ID", lambda item: item["id"]),
                Column("TYPE", lambda item: item["type"]),
                Column("BYTES", lambda item: item["size_bytes"], right=True),
                Column("AGAIN", lambda item: item["redelivered"]),
                Column("BODY", lambda item: _first_line(item["body"]), free=True),
            )
            render.show(settings, items=items, columns=columns, name=_name)
        case Output.WIDE:
            for item in items:
                message_block(item, (("id", "id"), ("type", "type"), ("size_bytes", "bytes")))
        case _:
            document = {
                "v": 1,
                "queue": found.queue,
                "type": found.kind,
                "waiting": found.waiting,
                "notes": list(found.notes),
                "items": items,
            }
            render.show(settings, items=items, columns=(), name=_name, document=document)


def _item(one: Message) -> dict[str, Any]:
    return {
        "place": one.place,
        "id": one.id or None,
        "type": one.type or None,
        "redelivered": one.redelivered,
        "size_bytes": one.size_bytes,
        "body": body_text(one.body),
        "body_is_cut": one.size_bytes > len(one.body),
        "properties": dict(one.properties),
        "headers": dict(one.headers),
    }


def _name(item: Any) -> str:
    return item["id"] or str(item["place"])


#: Characters of a body in a table.
_SHOWN_CHARS = 120


def _first_line(body: str) -> str:
    return body if len(body) <= _SHOWN_CHARS else body[: _SHOWN_CHARS - 1] + "…"


@queues.command()
@click.argument("queue", shell_complete=completion.any_queue)
@click.option("--dry-run", is_flag=True, help="Show how many messages it concerns; take none.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_settings
def purge(settings: Settings, queue: str, dry_run: bool, yes: bool) -> None:
    """Throw away every message of QUEUE that no consumer has in hand; what somebody has stays.

    They are gone for good. The queue is one of the inventory's, or of qctl's own.
    """
    import asyncio

    from qctl.ops import queues as ops

    inventory = settings.load()
    ops.check_queue(inventory, queue)
    if not (yes or dry_run):
        check_can_ask(f"purge {queue}")
    quiet.libraries(settings)
    there = asyncio.run(ops.depth(inventory, queue, connect_timeout_s=settings.connect_timeout_s))
    if dry_run:
        _show_purged(settings, queue, there, None, dry_run=True)
        render.say(settings, f"would purge {queue}: {_messages(there)}; nothing was done")
        return
    if not yes:
        confirm(
            inventory,
            what=f"purge {queue}",
            typed=queue,
            names=[f"{_messages(there)} at present, and what comes until you answer"],
            question="Throw them away?",
        )
    timeout_s = settings.connect_timeout_s
    purged: list[ops.Purged] = []
    try:
        asyncio.run(ops.purge(inventory, queue, connect_timeout_s=timeout_s, on_purged=purged.append))
    finally:
        for done in purged:  # also when what came after it went wrong
            _show_purged(settings, queue, done.count, done.unacked, dry_run=False)


def _show_purged(settings: Settings, queue: str, count: int, unacked: int | None, *, dry_run: bool) -> None:
    document = {"v": 1, "queue": queue, "dry_run": dry_run, "count": count, "unacked": unacked}
    if settings.output in (Output.TABLE, Output.WIDE):
        if not dry_run:
            stays = f"; {unacked} were in hand and stay" if unacked else ""
            render.line(f"{queue}: purged {_messages(count)}{stays}")
        return
    render.show(settings, items=[document], columns=(), name=lambda item: item["queue"], document=document)


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
