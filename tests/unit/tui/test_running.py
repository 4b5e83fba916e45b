"""Acts that were begun: how many may run, and how many are kept."""

from __future__ import annotations

import asyncio

import pytest

from qctl.errors import QctlError
from qctl.tui.acts.plan import MAX_ROWS, Row, Shown
from qctl.tui.acts.running import MAX_KEPT, MAX_RUNNING, Acts, Running
from qctl.tui.cells import one, plain
from tests.wire import scenario


class Waiting:
    """An act that ends when it is told to."""

    doing = ""
    is_given = False

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.told = Shown()

    def shown(self) -> Shown:
        return self.told

    async def run(self) -> None:
        await self.end.wait()


@scenario
async def test_no_more_than_a_few_run_at_once_and_the_newest_that_are_over_are_kept() -> None:
    # given as many as may run
    acts, ended = Acts(), []
    waiting = [Waiting() for _ in range(MAX_RUNNING)]
    for number, act in enumerate(waiting):
        acts.begin(str(number), act, ended.append)
    # then one more is refused, and never begun
    with pytest.raises(QctlError, match=f"{MAX_RUNNING} acts run already"):
        acts.begin("one too many", Waiting(), ended.append)
    assert len(acts.running) == MAX_RUNNING
    # when one ends, there is room
    waiting[0].end.set()
    await acts.running[0].ended()
    assert [one.what for one in ended] == ["0"]
    # and of very many that are over the newest are kept
    for number in range(MAX_KEPT + 5):
        act = Waiting()
        act.end.set()
        await acts.begin(f"later {number}", act, ended.append).ended()
    over = [one for one in acts.all if one.is_over]
    assert len(over) == MAX_KEPT
    assert over[0].what == f"later {MAX_KEPT + 4}"
    assert len(acts.running) == MAX_RUNNING - 1
    for act in waiting:
        act.end.set()
    await asyncio.gather(*(one.ended() for one in acts.running))


@scenario
async def test_what_was_not_given_is_said_to_be_so_at_the_end() -> None:
    act = Waiting()
    running = Running("pause web-1", act, lambda _: None)
    assert running.last_words == "pause web-1: not given"
    act.end.set()
    await running.ended()


@scenario
async def test_of_a_large_fleet_the_first_rows_are_kept_and_the_others_counted() -> None:
    # given more rows than anybody reads
    act = Waiting()
    act.told = Shown(("TAG",), tuple(Row((one(number),)) for number in range(MAX_ROWS + 7)))
    running = Running("pause *", act, lambda _: None)
    for _ in ("while it runs", "when it is over"):
        assert [plain(running.shown().rows[at].cells[0]) for at in (0, -1)] == ["0", str(MAX_ROWS - 1)]
        assert running.shown().left_out == 7
        act.end.set()
        await running.ended()
