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


class Replaying(Waiting):
    """An act to whose end belongs what was on its way: for `last_s`."""

    is_given = True

    def __init__(self, last_s: float) -> None:
        super().__init__()
        self._last_s = last_s
        self.told = Shown(summary="replayed 7")

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await asyncio.sleep(self._last_s)
            self.told = Shown(summary="replayed 9")


@scenario
async def test_the_last_words_of_the_console_are_said_after_what_ran_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qctl.tui.acts.running.LEAVE_S", 0.2)
    acts, ended = Acts(), []
    silent = Waiting()
    silent.is_given = True
    for act in (Replaying(0.01), Waiting(), silent, Replaying(60)):
        acts.begin("pause web-1", act, ended.append)
    await asyncio.sleep(0)
    # when the console ends: the last one takes its time
    words = await acts.leave()
    # then the confirms that came meanwhile count, and no more is waited for than is bearable
    assert words == (
        "replayed 9 (it was not waited for the rest)",
        "pause web-1: not given",
        "pause web-1: not known to be given",
        "replayed 7 (it was not waited for the rest)",
    )
    # and nobody is told on a screen that is gone
    assert ended == []


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
