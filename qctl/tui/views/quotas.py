"""Quotas: every limit of every server. What is used, how fast, and when it is gone or back."""

from __future__ import annotations

from qctl.control.quota_reading import SLIDING
from qctl.ops.spending import SOMEBODY_ELSE, window_words
from qctl.ops.status import QuotaRow
from qctl.tui import words
from qctl.tui.bars import Spark
from qctl.tui.cells import EMPTY, Cell, Column, one
from qctl.tui.history import Kind
from qctl.tui.scene import Scene
from qctl.tui.text import Drawing
from qctl.tui.views.listing import Listing


def listing(scene: Scene) -> Listing[QuotaRow]:
    """All quotas, the one that presses most first."""
    rows = scene.snapshot.status.quotas
    width = words.widest((row.address for row in rows), least=10, most=24 if scene.narrow else 44)
    digits_width = words.digits(rows)
    rates_width = words.widest((", ".join(row.rates) for row in rows), least=5, most=24)

    windows = any(row.window != SLIDING for row in rows)
    others = any(words.others(row) for row in rows)

    def cells(row: QuotaRow) -> tuple[Cell | Drawing, ...]:
        return (
            name(row),
            words.gauge(row, name_width=0, digits_width=digits_width),
            words.runs_out(row, scene),
            words.per_s(row.spend_per_s, estimated=row.spend_estimated),
            Spark(scene.past.of(Kind.BURN, row.address)),
            one(words.limits(row.rates, rates_width), "paused" if row.override else ""),
            words.age(row.seen, scene),
            *((one(window_words(row, lambda at_s: words.moment(at_s, scene)), "dim"),) if windows else ()),
            *((one(words.others_in_short(row, scene), "warn"),) if others else ()),
            override(row, scene),
            one(words.limits(row.inventory_rates, rates_width), "dim"),
        )

    def order(row: QuotaRow) -> tuple[object, ...]:
        presses, end_s = words.pressing(row, scene.now_s)
        return presses, int(end_s // 60), *_named(row)

    return Listing(
        rows=rows,
        columns=(
            Column("address", "QUOTA", width, flex=2, sort=_named),
            Column("used", "USED", 8 + digits_width + 1, flex=1, sort=words.fraction),
            Column("runs_out", "RUNS OUT", words.RUNS_OUT_WIDTH, sort=lambda row: words.ends_s(row, scene.now_s)),
            Column("rate", "UNITS/S", words.RATE_WIDTH, right=True, sort=lambda row: row.spend_per_s),
            Column("burn", "BURN", 12, flex=1, rank=4),
            Column("limit", "LIMIT", rates_width, rank=2, sort=_per_s),
            words.age_column(),
            *((Column("window", "WINDOW", 16, flex=1, rank=5),) if windows else ()),
            *((Column("others", SOMEBODY_ELSE.upper(), 20, flex=3, rank=1),) if others else ()),
            Column("override", "SET BY", 18, flex=2, rank=3, sort=lambda row: row.override and row.override.by),
            Column("inventory", "INVENTORY", rates_width, wide=True, rank=20),
        ),
        key=lambda row: row.address,
        cells=cells,
        text=lambda row: f"{row.address} {' '.join(row.rates)} {row.window} {SOMEBODY_ELSE * bool(words.others(row))}",
        order=order,
        empty="No quota is known: the inventory has none that a consumer spends.",
    )


def name(row: QuotaRow) -> Cell:
    """`web-1/twitter`."""
    return ((f"{row.host}/", "dim"), (row.quota, ""))


def _named(row: QuotaRow) -> tuple[object, ...]:
    return words.natural(row.host), words.natural(row.quota)


def _per_s(row: QuotaRow) -> float | None:
    limit = words.limit_of(row)
    return limit / row.period_s if limit and row.period_s else None


def override(row: QuotaRow, scene: Scene) -> Cell:
    """Who set another limit than the inventory's, until when and why."""
    order = row.override
    if order is None:
        return EMPTY
    until = f" until {words.moment(order.until_s, scene)}" if order.until_s is not None else ""
    return ((f"{order.by or '?'}{until}", "paused"), (f"  {order.reason}" if order.reason else "", "dim"))
