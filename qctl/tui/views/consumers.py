"""Consumers: a row a subscription. Its state, why, since when, by whom."""

from __future__ import annotations

from qctl.ops.status import in_words
from qctl.tui import words
from qctl.tui.cells import Cell, Column, one
from qctl.tui.scene import Scene
from qctl.tui.snapshot import TagRow
from qctl.tui.text import Drawing
from qctl.tui.views.listing import Listing

_OURS = "qctl/"


def listing(scene: Scene) -> Listing[TagRow]:
    """All subscriptions, those that need somebody first."""
    rows = scene.snapshot.tags
    most = 24 if scene.narrow else 44
    width = words.widest((row.tag.removeprefix(_OURS) for row in rows), least=10, most=most)
    queue_width = words.widest((row.queue for row in rows), least=5, most=20)

    def cells(row: TagRow) -> tuple[Cell | Drawing, ...]:
        return (
            tag(row),
            state(row, scene),
            one(words.moment(row.since_s, scene), "dim"),
            words.count(row.running),
            words.count(row.waiting),
            words.per_s(row.rate_per_s),
            words.age(row.seen, scene),
            one(cause(row), "dim"),
            one(row.queue, "dim"),
            one(row.by, "paused"),
            one(words.moment(row.until_s, scene)),
        )

    return Listing(
        rows=rows,
        columns=(
            Column("tag", "CONSUMER", width, flex=2, sort=_named),
            words.state_column(),
            Column("since", "SINCE", words.MOMENT_WIDTH, rank=2, sort=lambda row: row.since_s),
            Column("running", "RUNNING", 7, right=True, rank=3, sort=lambda row: row.running),
            Column("waiting", "WAITING", 7, right=True, rank=6, sort=lambda row: row.waiting),
            Column("rate", "TASKS/S", words.RATE_WIDTH, right=True, rank=1, sort=lambda row: row.rate_per_s),
            words.age_column(),
            Column("why", "WHY", 16, flex=3, rank=1),
            Column("queue", "QUEUE", queue_width, rank=5, sort=lambda row: words.natural(row.queue)),
            Column("by", "BY", 10, wide=True, rank=20, sort=lambda row: row.by or None),
            Column("until", "UNTIL", 12, wide=True, rank=20, sort=lambda row: row.until_s),
        ),
        key=lambda row: row.tag,
        cells=cells,
        text=lambda row: f"{row.tag} {row.queue} {in_words(row.state, row.why)} {row.by} {row.why}",
        order=lambda row: (words.NEED.get(row.state, 9), *_named(row)),
        empty="No consumer was heard, and the inventory has none.",
    )


def _named(row: TagRow) -> tuple[object, ...]:
    return words.natural(row.host), words.natural(row.consumer), row.tag


def tag(row: TagRow) -> Cell:
    """`web-1/timeline/0`: what is not the address is of a second rank; a foreign tag stands as it is."""
    named = f"{_OURS}{row.address}"
    if row.address != "/" and row.tag.startswith(named):
        return ((row.address, ""), (row.tag.removeprefix(named), "dim"))
    return one(row.tag)


def state(row: TagRow, scene: Scene) -> Cell:
    """Its state with who paused it, or until when it is held."""
    since_s = words.off_since_s(row.since_s, row.seen)
    return words.state(row.state, scene, why=row.why, by=row.by, since_s=since_s, until_s=row.until_s)


def cause(row: TagRow) -> str:
    """Why it is so, without who paused it: that stands in the state."""
    if row.why in in_words(row.state, row.why):
        return ""
    return row.why.removeprefix(f"by {row.by}: ").removeprefix(f"by {row.by}") if row.by else row.why
