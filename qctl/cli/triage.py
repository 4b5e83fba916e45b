"""Orders about dead letters, carried out one after the other; what is printed at the end is true however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qctl.cli import render
from qctl.cli.options import Output, Settings
from qctl.cli.progress import Progress

if TYPE_CHECKING:
    from qctl.errors import QctlError
    from qctl.inventory.model import Inventory
    from qctl.ops.triage import Order, Report


def carry_out(settings: Settings, inventory: Inventory, verb: str, orders: Sequence[Order]) -> int:
    """One queue after the other; what is true is printed, also when it ends badly."""
    import asyncio

    from qctl.errors import Exit, Partly

    reports: list[Report] = []
    failure: QctlError | None = None
    for order in orders:
        report, failure = asyncio.run(_run(settings, inventory, order))
        reports.append(report)
        if failure is not None:
            break
    is_whole = failure is None and all(one.done == one.total for one in reports)
    code = Exit.DONE if is_whole else Exit.PARTLY
    if failure is not None:
        did = sum(one.done for one in reports)
        code = Exit.PARTLY if did and failure.exit_code is Exit.FAILED else failure.exit_code
    if failure is None or settings.output in (Output.JSON, Output.JSONL):
        _show_reports(settings, verb, [_report_item(one) for one in reports], int(code), dry_run=False)
    if failure is not None:
        truth = "; ".join(f"{one.queue}: {one.words}" for one in reports)
        words = f"{failure.message}; {truth}; the others are where they were"
        if code is Exit.PARTLY:
            raise Partly(words, hint=failure.hint) from None
        failure.message = words
        raise failure from None
    if not is_whole:
        from qctl.broker.walk import NOT_COME

        render.say(settings, f"qctl: the others were gone, or {NOT_COME}")
    return int(code)


async def _run(settings: Settings, inventory: Inventory, order: Order) -> tuple[Report, QctlError | None]:
    """Carry out one order; what is true at the end, and why it ended, if not well."""
    import asyncio
    import signal

    from qctl.errors import Interrupted, QctlError
    from qctl.ops.triage import Triage

    progress = Progress(settings)
    work = Triage(
        inventory,
        order,
        on_progress=lambda report, state: progress.show(f"{report.queue}: {report.words}", state),
    )
    task = asyncio.ensure_future(work.run(connect_timeout_s=settings.connect_timeout_s))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    failure: QctlError | None = None
    try:
        await task
    except asyncio.CancelledError:
        failure = Interrupted("interrupted")
    except QctlError as error:
        failure = error
    progress.clear()
    return work.report, failure


def _report_item(report: Report) -> dict[str, Any]:
    return {
        "queue": report.queue,
        "done": report.done,
        "total": report.total,
        "maybe_twice": report.maybe_twice,
        "stays": report.stays,
        "seconds": round(report.seconds, 3),
        "words": report.words,
    }


def show_planned(settings: Settings, verb: str, orders: Sequence[Order], *, dry_run: bool) -> None:
    """Print orders of which nothing is done, as JSON."""
    items = [
        {"queue": order.queue, "done": 0, "total": order.total, "maybe_twice": 0, "stays": 0, "seconds": 0.0}
        for order in orders
    ]
    _show_reports(settings, verb, items, 0, dry_run=dry_run)


def _show_reports(
    settings: Settings, verb: str, items: Sequence[dict[str, Any]], exit_code: int, *, dry_run: bool
) -> None:
    if settings.output in (Output.TABLE, Output.WIDE):
        for item in items:
            render.line(f"{item['queue']}: {item['words']}")
        return
    documents = [{key: value for key, value in item.items() if key != "words"} for item in items]
    document = {"v": 1, "verb": verb, "dry_run": dry_run, "exit_code": exit_code, "items": documents}
    render.show(settings, items=documents, columns=(), name=lambda item: item["queue"], document=document)
