"""Hosts: a row a server. Who is about to run out, what is off and why."""

from __future__ import annotations

from collections.abc import Sequence

from qctl.ops.spending import SOMEBODY_ELSE
from qctl.ops.status import ConsumerRow, HostRow, QuotaRow, State, in_words
from qctl.tui import words
from qctl.tui.cells import EMPTY, UNKNOWN, Cell, Column, one
from qctl.tui.scene import Scene
from qctl.tui.text import Drawing
from qctl.tui.views.listing import Listing

#: Quotas of a host that have a column each, the one that presses most first.
MAX_QUOTAS = 4
#: Consumers that are off for the same reason and are named.
MAX_NAMES = 2
_BAR_WIDTH = 8


def listing(scene: Scene) -> Listing[HostRow]:
    """All servers, those that need somebody first."""
    status = scene.snapshot.status
    quotas = {host: by_pressure(rows, scene) for host, rows in scene.quotas.items()}
    slots = min(max(map(len, quotas.values()), default=0), MAX_QUOTAS)
    most = 10 if scene.narrow else 16
    name_width = words.widest((row.quota for row in status.quotas), least=4, most=most)
    digits_width = words.digits(status.quotas)
    gauge_width = name_width + _BAR_WIDTH + digits_width + 2

    def quota(row: HostRow, slot: int) -> QuotaRow | None:
        found = quotas.get(row.host, ())
        return found[slot] if slot < len(found) else None

    def gauge(row: HostRow, slot: int) -> Cell | Drawing:
        found = quota(row, slot)
        return words.gauge(found, name_width=name_width, digits_width=digits_width) if found else EMPTY

    def ends(row: HostRow) -> float | None:
        found = quota(row, 0)
        return words.ends_s(found, scene.now_s) if found else None

    def cells(row: HostRow) -> tuple[Cell | Drawing, ...]:
        mine = scene.consumers.get(row.host, [])
        return (
            ((row.host, ""), ("" if row.listed else " *", "warn")),
            state(row, mine, scene),
            gauge(row, 0) if slots else UNKNOWN,
            words.runs_out(quota(row, 0), scene) if quota(row, 0) else UNKNOWN,
            *(gauge(row, slot) for slot in range(1, slots)),
            _rate(mine),
            _running(mine),
            words.count(len(mine)),
            words.age(row.seen, scene),
            _why(one(cause(row, mine), "dim"), others(quotas.get(row.host, ()))),
            one(row.machine),
            words.share(row.heard, row.processes),
        )

    def order(row: HostRow) -> tuple[object, ...]:
        end_s = ends(row)
        soon = end_s is not None and end_s < words.SOON_S
        return _need(row, soon=soon), int(end_s // 60) if end_s and soon else 0, words.natural(row.host)

    def text(row: HostRow) -> str:
        named = " ".join(one.consumer for one in scene.consumers.get(row.host, ()))
        return f"{row.host} {row.words} {row.why} {named} {' '.join(one.quota for one in quotas.get(row.host, ()))}"

    return Listing(
        rows=status.hosts,
        columns=(
            Column("host", "HOST", _name_width(scene, status.hosts), flex=2, sort=lambda row: words.natural(row.host)),
            words.state_column(),
            Column("quota", "QUOTA", gauge_width, flex=1, sort=lambda row: words.fraction(quota(row, 0))),
            Column("runs_out", "RUNS OUT", words.RUNS_OUT_WIDTH, sort=ends),
            *(
                Column(f"quota_{slot + 1}", "", gauge_width, flex=1, rank=6 + slot, wide=slot > 1)
                for slot in range(1, slots)
            ),
            Column(
                "rate",
                "TASKS/S",
                words.RATE_WIDTH,
                right=True,
                rank=3,
                sort=lambda row: words.total(one.rate_per_s for one in scene.consumers.get(row.host, ())),
            ),
            Column(
                "running",
                "RUNNING",
                9,
                right=True,
                rank=4,
                sort=lambda row: words.total(one.running for one in scene.consumers.get(row.host, ())),
            ),
            Column(
                "consumers",
                "CONS",
                4,
                right=True,
                rank=5,
                sort=lambda row: len(scene.consumers.get(row.host, ())),
            ),
            words.age_column(),
            Column("why", "WHY", 14, flex=3, rank=2),
            Column("machine", "MACHINE", 12, flex=1, wide=True, rank=20, sort=lambda row: row.machine),
            Column("processes", "PROC", 5, right=True, wide=True, rank=20, sort=lambda row: row.heard),
        ),
        key=lambda row: row.host,
        cells=cells,
        text=text,
        order=order,
        empty="The inventory has no hosts, and none was heard.",
    )


def _name_width(scene: Scene, rows: tuple[HostRow, ...]) -> int:
    return words.widest((row.host for row in rows), least=8, most=14 if scene.narrow else 32)


def by_pressure(rows: list[QuotaRow], scene: Scene) -> list[QuotaRow]:
    """The quotas of a host, the one that presses most first; those that last keep the order they are in."""
    return sorted(rows, key=lambda row: words.pressing(row, scene.now_s))


def _need(row: HostRow, *, soon: bool) -> int:
    """Down and unknown first, then held, then who runs out soon, then whatever else does not consume."""
    if row.state in (State.DOWN, State.UNKNOWN, State.HELD):
        return words.NEED[row.state]
    if row.state is State.MIXED and row.counts.keys() & {State.DOWN, State.UNKNOWN, State.HELD}:
        return 3
    return 4 if soon else 5 + words.NEED.get(row.state, 9)


def state(row: HostRow, mine: list[ConsumerRow], scene: Scene) -> Cell:
    """A host's state: its consumers' where they agree, else counted."""
    if row.state is State.MIXED:
        return words.mixed(row)
    until = [hold.until_s for one in mine for hold in one.holds if hold.until_s is not None]
    by = dict.fromkeys(pause.by for one in mine for pause in one.pauses if pause.by)
    return words.state(
        row.state,
        scene,
        why=row.why,
        by=", ".join(by),
        since_s=words.off_since_s(row.since_s, row.seen),
        until_s=min(until, default=None),
    )


def cause(row: HostRow, mine: list[ConsumerRow]) -> str:
    """Why a host is as it is, unless its state says it; of consumers that do not agree, why those that are off are."""
    said = [] if row.listed else ["not in the inventory"]
    if row.state is State.MIXED:
        off: dict[str, list[str]] = {}
        for each in sorted(mine, key=lambda each: words.NEED.get(each.state, 9)):
            if each.state is not State.CONSUMING:
                off.setdefault(each.why or each.state, []).append(each.consumer)
        said += [f"{_names(consumers)}: {cause}" for cause, consumers in off.items()]
    elif row.why not in in_words(row.state, row.why):
        said.append(row.why)
    return "; ".join(said)


def others(rows: Sequence[QuotaRow]) -> Cell:
    """Which quotas of a host somebody else spends too, and how much of them."""
    said = [f"{row.quota}: {row.foreign_units} by {SOMEBODY_ELSE}" for row in rows if words.others(row)]
    return one("; ".join(said), "warn")


def _why(cause: Cell, others: Cell) -> Cell:
    return (*cause, ("; ", "dim"), *others) if cause and others else (*cause, *others)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}"


def _rate(mine: list[ConsumerRow]) -> Cell:
    rates = [one.rate_per_s for one in mine if _may_run(one)]
    return words.at_least(words.per_s(words.total(rates)), rates)


def _running(mine: list[ConsumerRow]) -> Cell:
    counts = [one.running for one in mine if _may_run(one)]
    running = [count for count in counts if count is not None]
    slots = [one.concurrency for one in mine if one.concurrency is not None]
    return words.at_least(words.share(sum(running), sum(slots)) if running else UNKNOWN, counts)


def _may_run(row: ConsumerRow) -> bool:
    """Nothing of a consumer that is down runs, though nobody says so in numbers."""
    return row.state is not State.DOWN or row.running is not None
