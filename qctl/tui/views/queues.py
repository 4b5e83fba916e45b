"""Queues: how deep, how fast in and out, which are growing, and when they are empty."""

from __future__ import annotations

from collections.abc import Sequence

from qctl.ops.status import QueueRow, State
from qctl.tui import words
from qctl.tui.bars import Spark
from qctl.tui.cells import EMPTY, UNKNOWN, Cell, Column, one
from qctl.tui.history import Kind
from qctl.tui.scene import STILL_PER_S, Scene
from qctl.tui.text import Drawing
from qctl.tui.views.listing import Listing


def listing(scene: Scene) -> Listing[QueueRow]:
    """The page of queues that is here, the deepest first."""
    rows = scene.snapshot.status.queues

    def cells(row: QueueRow) -> tuple[Cell | Drawing, ...]:
        return (
            one(row.queue, "" if row.work else "dim"),
            words.count(row.ready),
            trend(row, scene),
            Spark(scene.past.of(Kind.DEPTH, row.queue)),
            words.per_s(row.in_per_s),
            words.per_s(row.out_per_s, estimated=row.out_estimated),
            empty_in(row, scene),
            takers(row, scene),
            words.count(row.unacked),
            words.age(row.seen, scene),
            one(row.why, "dim"),
        )

    return Listing(
        rows=rows,
        columns=(
            queue_column(scene, rows),
            Column("ready", "READY", 9, right=True, sort=lambda row: row.ready),
            Column("trend", "GROWS/S", 9, right=True, sort=scene.growth_per_s),
            Column("depth", "DEPTH", 12, flex=1, rank=4),
            Column("in", "IN/S", words.RATE_WIDTH, right=True, rank=3, sort=lambda row: row.in_per_s),
            Column("out", "OUT/S", words.RATE_WIDTH, right=True, rank=3, sort=lambda row: row.out_per_s),
            Column("empty", "EMPTY IN", 9, right=True, sort=lambda row: row.empty_at_s),
            Column("consumers", "TAKEN BY", 9, right=True, rank=1, sort=lambda row: len(row.consumers)),
            Column("unacked", "UNACKED", 8, right=True, rank=5, sort=lambda row: row.unacked),
            words.age_column(),
            Column("why", "WHY", 20, flex=2, wide=True, rank=20),
        ),
        key=lambda row: row.queue,
        cells=cells,
        text=lambda row: row.queue,
        order=lambda row: (-(row.ready if row.ready is not None else -1), words.natural(row.queue)),
        empty="No queue of that name." if scene.snapshot.page.total else "No queues are known yet.",
    )


def queue_column(scene: Scene, rows: Sequence[QueueRow]) -> Column:
    """The names, in the room there is."""
    width = words.widest((row.queue for row in rows), least=12, most=22 if scene.narrow else 40)
    return Column("queue", "QUEUE", width, flex=2, sort=lambda row: words.natural(row.queue))


def trend(row: QueueRow, scene: Scene) -> Cell:
    """`↑ 12.4` where a queue grows, `↓ 3.1` where it shrinks."""
    growth_per_s = scene.growth_per_s(row)
    if growth_per_s is None:
        return UNKNOWN
    if abs(growth_per_s) < STILL_PER_S:
        return one("0", "dim")
    amount = f"{abs(growth_per_s):.1f}" if abs(growth_per_s) < 1_000 else f"{abs(growth_per_s):.0f}"
    return one(f"↑ {amount}", "warn") if growth_per_s > 0 else one(f"↓ {amount}", "dim")


def consuming(row: QueueRow, scene: Scene) -> int | None:
    """How many of its consumers take tasks at present, as far as is known; None where that may be more than nobody."""
    mine = [scene.takers.get(address) for address in row.consumers]
    number = sum(1 for one in mine if one and (one.state is State.CONSUMING or one.counts.get(State.CONSUMING)))
    return number or (None if any(one is None or one.state is State.UNKNOWN for one in mine) else 0)


def takers(row: QueueRow, scene: Scene) -> Cell:
    """`2/3`: so many of its consumers take from it."""
    if not row.work:
        return EMPTY
    number = consuming(row, scene)
    if not row.consumers or number is None:
        return UNKNOWN
    return ((str(number), "warn" if number == 0 and row.ready else ""), (f"/{len(row.consumers)}", "dim"))


def empty_in(row: QueueRow, scene: Scene) -> Cell:
    """When a queue is empty, or why not: `3m12s`, `empty`, `grows`, `nobody`."""
    if row.ready == 0:
        return one("empty", "dim")
    if row.work and row.ready and row.consumers and consuming(row, scene) == 0:
        return one("nobody", "warn")
    if row.empty_at_s is not None:
        return one(words.about(row.empty_at_s - scene.now_s))
    growth_per_s = scene.growth_per_s(row)
    if growth_per_s is not None and growth_per_s >= STILL_PER_S:
        return one("grows", "warn")
    return UNKNOWN
