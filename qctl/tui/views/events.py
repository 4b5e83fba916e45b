"""Events: who commanded what when, what was ignored of it, and what hosts have found out."""

from __future__ import annotations

from qctl.ops.events import Happened
from qctl.ops.when import instant
from qctl.tui import words
from qctl.tui.cells import Cell, Column, one
from qctl.tui.scene import Scene
from qctl.tui.text import Drawing
from qctl.tui.views.listing import Listing

_STYLES = {"pause": "paused", "resume": "ok", "quota.set": "held", "quota.clear": "held"}


def listing(scene: Scene) -> Listing[Happened]:
    """The control log, the newest first."""
    rows = scene.snapshot.events
    target_width = words.widest((row.target for row in rows), least=8, most=16 if scene.narrow else 40)

    def cells(row: Happened) -> tuple[Cell | Drawing, ...]:
        at_s = instant(row.at)
        return (
            one(words.moment(at_s, scene) if at_s is not None else None, "dim"),
            one(row.user or None),
            title(row),
            one(row.target or None),
            reason(row, scene),
            one(row.claimed_by, "dim"),
            one(row.id, "dim"),
        )

    return Listing(
        rows=rows,
        columns=(
            Column("at", "WHEN", words.MOMENT_WIDTH, flex=2, sort=lambda row: instant(row.at)),
            Column("by", "BY", 8, flex=1, sort=lambda row: row.user or None),
            Column("verb", "DID", 11, sort=lambda row: row.verb or row.notice or None),
            Column("target", "TO", target_width, flex=1, sort=lambda row: words.natural(row.target)),
            Column("why", "WHY", 14, flex=2, rank=1),
            Column("as", "SAYS IT IS", 20, rank=2, sort=lambda row: row.claimed_by),
            Column("id", "ID", 12, wide=True, rank=20),
        ),
        key=lambda row: str(row.offset),
        cells=cells,
        text=lambda row: (
            f"{row.user} {row.verb} {row.found_out} {row.target} {row.reason or ''} {row.claimed_by or ''}"
            f" {row.ignored}"
        ),
        order=lambda row: -row.offset,
        empty="Nobody has commanded anything yet.",
    )


def title(row: Happened) -> Cell:
    """What was commanded."""
    if row.notice:
        return one("notice", "warn")
    return one(row.verb or "?", "warn" if row.ignored else _STYLES.get(row.verb, ""))


def reason(row: Happened, scene: Scene) -> Cell:
    """The limits set, until when, why, and why it is not obeyed."""
    said: list[tuple[str, str]] = []
    if row.ignored:
        said.append((f"ignored: {row.ignored}  ", "warn"))
    if row.notice:
        since = f" since {words.moment(row.since_s, scene)}" if row.since_s is not None else ""
        said.append((f"{row.found_out}{since}  ", ""))
    if row.rates:
        said.append((f"{', '.join(row.rates)}  ", ""))
    if row.until_s is not None:
        said.append((f"until {words.moment(row.until_s, scene)}  ", ""))
    if row.reason:
        said.append((row.reason, "dim"))
    if row.local:
        said.append(("  (given on the host)", "dim"))
    return tuple(said)
