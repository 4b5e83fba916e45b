"""`qctl why`: the causal chain of what a consumer or a queue is at present, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qctl.cli import completion, render
from qctl.cli.options import Output, Settings, pass_settings
from qctl.errors import UnknownName

if TYPE_CHECKING:
    from qctl.inventory.model import Inventory
    from qctl.ops.status import Status
    from qctl.ops.why import Fact


@click.command()
@click.argument("what", metavar="HOST/CONSUMER|QUEUE", shell_complete=completion.consumer_or_queue)
@pass_settings
def why(settings: Settings, what: str) -> None:
    """Say why a consumer of a host, or a queue, is as it is: who paused it, what holds it, who else takes its tasks,
    when the queue will be empty.

    Instants are in this machine's time zone; -o json has them in UTC, and the numbers.
    """
    from qctl.cli.status import look

    inventory = settings.load()
    _check(inventory, what)
    found = look(settings, inventory)
    facts = explain(found, what)
    items = [fact.item() for fact in facts]
    match settings.output:
        case Output.TABLE | Output.WIDE:
            for fact in facts:
                render.line(fact.sentence)
        case _:
            from qctl.ops.when import iso

            document = {"v": 1, "at": iso(found.at_s), "about": what, "items": items}
            render.show(settings, items=items, columns=(), name=lambda item: item["fact"], document=document)


def explain(found: Status, what: str) -> tuple[Fact, ...]:
    """The facts about what was named, which the inventory has."""
    from qctl.ops import why as chain
    from qctl.ops.status import QueueRow

    if "/" not in what:
        return chain.queue(found, found.queue(what) or QueueRow(queue=what))
    return chain.consumer(found, next(row for row in found.consumers if row.address == what))


def _check(inventory: Inventory, what: str) -> None:
    """Raise UnknownName, with the nearest name, for what the inventory does not have."""
    from qctl.inventory.nearest import did_you_mean
    from qctl.ops.backlog import work_queues

    host, slash, consumer = what.partition("/")
    if slash:
        runs = inventory.host(host).consumers
        if consumer not in runs:
            inventory.consumer(consumer)
            raise UnknownName(
                f"host {host} does not run consumer {consumer!r}",
                hint=did_you_mean(consumer, runs) or f"It runs: {', '.join(runs)}.",
            )
        return
    queues = work_queues(inventory)
    if what in queues:
        return
    if what in inventory.hosts:
        raise UnknownName(
            f"{what!r} is a host; say which of its consumers",
            hint=f"For example: qctl why {what}/{next(iter(inventory.hosts[what].consumers))}; or qctl status {what}",
        )
    of_consumer = inventory.consumers.get(what)
    named = f"The queue of consumer {what} is {of_consumer.queue}." if of_consumer else did_you_mean(what, queues)
    raise UnknownName(
        f"{inventory.path} has no queue {what!r}", hint=named or "Name HOST/CONSUMER, or the queue of a consumer."
    )
