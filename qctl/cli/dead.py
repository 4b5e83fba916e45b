"""`qctl dead`: the tasks that were given up on; look at them, give them another life, or throw them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import completion, letters, quiet, render, triage
from qctl.cli.confirm import check_can_ask, confirm
from qctl.cli.options import Duration, Output, Settings, pass_settings
from qctl.cli.render import Column

if TYPE_CHECKING:
    from qctl.inventory.model import Inventory
    from qctl.ops.dead import Letters
    from qctl.ops.letters import DeadLetter, Which
    from qctl.ops.triage import Order
    from qctl.units import Rate


class RateOf(click.ParamType["Rate"]):
    """`10/s`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Rate:
        from qctl.units import Rate, parse_rate

        if isinstance(value, Rate):
            return value
        try:
            return parse_rate(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
def dead() -> None:
    """Show the tasks that were given up on, and replay or drop them.

    The dead letters of a queue lie in QUEUE.dead until somebody decides; looking takes none away.
    """


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which letters; what is given several times means any of them."""
    for decorate in reversed(
        (
            click.option("--reason", metavar="R", multiple=True, help="Died of this: attempts, rejected, poison, ..."),
            click.option("--type", "kinds", metavar="T", multiple=True, help="Tasks of this type."),
            click.option("--older-than", metavar="DURATION", type=Duration(), help="Died longer ago than this."),
            click.option("--newer-than", metavar="DURATION", type=Duration(), help="Died less long ago than this."),
        )
    ):
        command = decorate(command)
    return command


def _which(ids: Sequence[str], reason: Sequence[str], kinds: Sequence[str], older: Any, newer: Any) -> Which:
    from qctl.ops.letters import Which

    return Which(tuple(ids), tuple(reason), tuple(kinds), older, newer)


# Looking


@dead.command()
@click.argument("queue", required=False, shell_complete=completion.dead_queue)
@_filters
@click.option("--count", "-n", metavar="N", type=click.IntRange(1, 100_000), default=1_000, help="At most so many.")
@pass_settings
def ls(
    settings: Settings,
    queue: str | None,
    reason: tuple[str, ...],
    kinds: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    count: int,
) -> None:
    """Show how many dead letters each queue has; with QUEUE (or a consumer) or a filter, each letter.

    -o wide adds what killed it. -o name prints ids, as `qctl dead replay` takes them.
    """
    inventory = settings.load()
    which = _which((), reason, kinds, older_than, newer_than)
    names = _queues(inventory, queue)
    quiet.libraries(settings)
    if queue is None and which.is_all:
        _show_counts(settings, inventory)
        return
    found = _look(settings, inventory, names, which, count)
    letters.rows(settings, found)
    for one in found:
        more = one.waiting - one.met
        if more > 0 and not one.notes:
            render.say(settings, f"qctl: {one.queue} has {more} more; -n shows more of them")


@dead.command()
@click.argument("identity", metavar="ID")
@click.argument("queue", required=False, shell_complete=completion.dead_queue)
@pass_settings
def show(settings: Settings, identity: str, queue: str | None) -> None:
    """Show all that a dead letter says: why it died, its headers, its body. ID as `qctl dead ls` prints it.

    Without QUEUE it is looked for in all of them.
    """
    inventory = settings.load()
    names = _queues(inventory, queue)
    quiet.libraries(settings)
    found = _look(settings, inventory, names, _which((identity,), (), (), None, None), 100)
    _check_found([identity], found)
    if settings.output in (Output.TABLE, Output.WIDE):
        letters.each(found)
    else:
        letters.rows(settings, found)


def _queues(inventory: Inventory, name: str | None) -> tuple[str, ...]:
    from qctl.ops.dead import dead_queue_of, dead_queues

    return dead_queues(inventory) if name is None else (dead_queue_of(inventory, name),)


def _look(settings: Settings, inventory: Inventory, names: Sequence[str], which: Which, limit: int) -> list[Letters]:
    import asyncio

    from qctl.ops.dead import letters

    async def each() -> list[Letters]:
        return [
            await letters(inventory, name, which=which, limit=limit, connect_timeout_s=settings.connect_timeout_s)
            for name in names
        ]

    found = asyncio.run(each())
    for note in (f"{one.queue}: {note}" for one in found for note in one.notes):
        render.say(settings, f"qctl: {note}")
    return found


def _show_counts(settings: Settings, inventory: Inventory) -> None:
    import asyncio

    from qctl.ops.dead import counts

    rows = asyncio.run(counts(inventory, connect_timeout_s=settings.connect_timeout_s))
    items = [{"queue": row.queue, "letters": row.ready, "why": row.why or None} for row in rows]
    for row in rows:
        if row.ready and row.why:
            render.say(settings, f"qctl: {row.queue}: {row.why}")
    columns = (
        Column("QUEUE", lambda item: item["queue"]),
        Column("LETTERS", lambda item: item["letters"], right=True),
        Column("WHY", lambda item: item["why"], wide=True, free=True),
    )
    render.show(settings, items=items, columns=columns, name=lambda item: item["queue"])


# Acting


def _acts(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in reversed(
        (
            click.argument("words", metavar="[QUEUE] [ID]...", nargs=-1, shell_complete=completion.dead_queue),
            _filters,
            click.option("--all", "every", is_flag=True, help="As many letters as are there now."),
            click.option("--dry-run", is_flag=True, help="Show which letters it concerns; touch none."),
            click.option("--yes", "-y", is_flag=True, help="Do not ask."),
        )
    ):
        command = decorate(command)
    return command


@dead.command()
@_acts
@click.option("--rate", metavar="RATE", type=RateOf(), help="No faster than this: 10/s, 600/m.")
@pass_settings
def replay(settings: Settings, /, rate: Rate | None, **options: Any) -> int:
    """Give dead letters another life: back into the queue they came from, with their attempts counted anew.

    Name letters by ID, by a filter, or --all of them; of QUEUE (or a consumer), or of all queues. Each is published and
    confirmed before it leaves QUEUE.dead, so none is lost, whatever ends this; the last line is true. A broker that is
    lost on the way is tried again for 60 s. Exit 3: not all were replayed, 75: the broker is blocked.
    """
    return _act(settings, "replay", rate=rate, **options)


@dead.command()
@_acts
@pass_settings
def drop(settings: Settings, /, **options: Any) -> int:
    """Throw dead letters away, for good. They are named as for `qctl dead replay`."""
    return _act(settings, "drop", rate=None, **options)


def _act(
    settings: Settings,
    verb: str,
    *,
    words: tuple[str, ...],
    reason: tuple[str, ...],
    kinds: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    every: bool,
    dry_run: bool,
    yes: bool,
    rate: Rate | None,
) -> int:
    inventory = settings.load()
    queue, ids = _parted(inventory, words)
    which = _which(ids, reason, kinds, older_than, newer_than)
    if which.is_all and not every:
        raise click.UsageError("name letters by ID, with --reason, --type, --older-than or --newer-than, or say --all")
    if every and not which.is_all:
        if queue is None:
            _check_no_typo(inventory, ids)
        raise click.UsageError("--all means every letter; it does not go with ids or filters")
    if not (yes or dry_run):
        check_can_ask(f"{verb} dead letters")
    quiet.libraries(settings)
    orders, names = _orders(settings, inventory, verb, _queues(inventory, queue), which, rate)
    total = sum(order.total for order in orders)
    where = orders[0].queue if len(orders) == 1 else f"{len(orders)} queues"
    what = f"{verb} {_letters(total)}" + (f" of {where}" if orders else "")
    if dry_run or not total:
        if settings.output in (Output.JSON, Output.JSONL):
            triage.show_planned(settings, verb, orders, dry_run=dry_run)
        elif dry_run:
            for name in names:
                render.line(name)
        render.say(settings, f"would {what}; nothing was done" if dry_run else f"there is nothing to {verb}")
        return 0
    if not yes:
        gone = "What is dropped is gone for good." if verb == "drop" else ""
        confirm(inventory, what=what, typed=where, names=names, more=gone, question=f"{verb.capitalize()} them?")
    return triage.carry_out(settings, inventory, verb, orders)


def _parted(inventory: Inventory, words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The queue, where the first word names one; the other words are ids."""
    from qctl.errors import UnknownName
    from qctl.ops.dead import dead_queue_of

    if not words:
        return None, ()
    try:
        dead_queue_of(inventory, words[0])
    except UnknownName:
        return None, words
    return words[0], words[1:]


def _check_no_typo(inventory: Inventory, ids: Sequence[str]) -> None:
    """Raise UnknownName for a word that was to be a queue."""
    from qctl.ops.dead import dead_queue_of

    if ids:
        dead_queue_of(inventory, ids[0])


def _orders(
    settings: Settings, inventory: Inventory, verb: str, queues: Sequence[str], which: Which, rate: Rate | None
) -> tuple[list[Order], list[str]]:
    """What is to be done, and its names for the question."""
    import asyncio

    from qctl.ops.dead import MAX_LIMIT, waiting_letters
    from qctl.ops.triage import Act, Order, chosen

    if which.is_all:
        depths = asyncio.run(waiting_letters(inventory, queues, connect_timeout_s=settings.connect_timeout_s))
        orders = [Order(Act(verb), queue, count, rate=rate) for queue, count in depths.items() if count]
        return orders, [f"{order.queue}: {_letters(order.total)}" for order in orders]
    found = _look(settings, inventory, queues, which, MAX_LIMIT)
    _check_found(which.ids, found)
    letters = [letter for one in found for letter in one.letters]
    return [chosen(Act(verb), one, rate=rate) for one in found if one.letters], [_line(letter) for letter in letters]


def _check_found(ids: Sequence[str], found: Sequence[Letters]) -> None:
    """Raise QctlError for ids that no letter has."""
    from qctl.errors import QctlError
    from qctl.inventory.nearest import did_you_mean

    met = {name for one in found for letter in one.letters for name in letter.names}
    for identity in ids:
        if identity not in met:
            raise QctlError(
                f"there is no dead letter '{render.plain(identity)}' in {', '.join(one.queue for one in found)}",
                hint=did_you_mean(identity, [one.queue for one in found]) or "`qctl dead ls QUEUE` lists them.",
            )


def _line(letter: DeadLetter) -> str:
    said = (letter.address, letter.type, letter.reason, letter.error)
    return "  ".join(part for part in said if part)


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"
