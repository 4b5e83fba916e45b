"""Dead letters: tasks that were given up on, by queue."""

from __future__ import annotations

from qctl.broker import topology
from qctl.ops.status import QueueRow
from qctl.tui import words
from qctl.tui.bars import Spark
from qctl.tui.cells import Cell, Column, one
from qctl.tui.history import Kind
from qctl.tui.scene import Scene
from qctl.tui.text import Drawing
from qctl.tui.views.listing import Listing
from qctl.tui.views.queues import queue_column, trend


def listing(scene: Scene) -> Listing[QueueRow]:
    """The queues of dead letters, the fullest first."""
    rows = found(scene)

    def cells(row: QueueRow) -> tuple[Cell | Drawing, ...]:
        return (
            one(row.queue, "" if row.ready else "dim"),
            one(row.ready, "bad" if row.ready else "dim"),
            trend(row, scene),
            Spark(scene.past.of(Kind.DEPTH, row.queue)),
            words.age(row.seen, scene),
        )

    return Listing(
        rows=rows,
        columns=(
            queue_column(scene, rows),
            Column("ready", "LETTERS", 9, right=True, sort=lambda row: row.ready),
            Column("trend", "GROWS/S", 9, right=True, sort=scene.growth_per_s),
            Column("depth", "DEPTH", 20, flex=1, rank=4),
            words.age_column(),
        ),
        key=lambda row: row.queue,
        cells=cells,
        text=lambda row: row.queue,
        order=lambda row: (-(row.ready or 0), words.natural(row.queue)),
        # Each queue has one of dead letters, which is a row with 0: a list without rows says nothing of tasks.
        empty="No queue of dead letters is known yet.",
    )


def found(scene: Scene) -> tuple[QueueRow, ...]:
    """What the broker lists; without that, what is seen among the queues."""
    if scene.snapshot.dead:
        return scene.snapshot.dead
    return tuple(row for row in scene.snapshot.status.queues if row.queue.endswith(topology.dead_queue("")))
