"""What `qctl demo` shows: lines without a terminal, the judged table, the verdict."""

from __future__ import annotations

import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from qctl.cli import demo
from qctl.demo.judge import HostJudgement, Judgement
from qctl.demo.queue import QueueReading
from qctl.demo.scenario import HostProgress, Progress, Report, Stage
from qctl.errors import Exit, Interrupted


def look(elapsed_s: float, *, stage: Stage = Stage.SPENDING, done: int = 0) -> Progress:
    hosts = (
        HostProgress("web-1", limit_units=200, used_units=200, refused=0, more_in_s=41.6),
        HostProgress("web-2", limit_units=1000, used_units=412, refused=0, more_in_s=41.9),
    )
    return Progress(stage, elapsed_s, hosts, enqueued=1200, done=done, queue=QueueReading(ready=588, consumers=1))


def report(*, twice: int = 0, directory: Path | None = None) -> Report:
    host = HostJudgement(
        host="web-1", limit_units=200, windows_units=(199, 20), most_in_any_window=200, refused=0, tasks_done=219
    )
    judged = Judgement((host,), enqueued=219, tasks_done=219, lost=0, twice=twice, unexpected=0)
    return Report(judged, window_s=60.0, elapsed_s=81.2, finished=True, directory=directory)


def test_a_look_as_a_line_has_what_each_host_used_the_queue_and_what_is_done() -> None:
    assert demo.plain_line(look(12.3, done=612)) == (
        "  12 s  web-1 200/200 spent, more in 42 s; web-2 412/1000; queue 588 waiting, 1 subscribed; done 612 of 1200"
    )


def test_given_looks_four_times_a_second_when_shown_as_lines_then_a_second_has_at_most_one_and_a_stage_always_one() -> (
    None
):
    said: list[str] = []
    show = demo.plain(said.append)

    for quarter in range(12):
        show(look(quarter / 4, done=quarter))
    show(look(3.0, stage=Stage.DRY))

    assert [line[:7] for line in said] == ["   0 s ", "   1 s ", "   2 s ", "   3 s "]
    assert said[-1] == f"   3 s  {Stage.DRY}"


def test_given_looks_in_which_only_time_goes_on_when_shown_as_lines_then_one_comes_every_ten_seconds() -> None:
    said: list[str] = []
    show = demo.plain(said.append)

    for second in range(25):
        show(look(float(second)))

    assert [line[:7] for line in said] == ["   0 s ", "  10 s ", "  20 s "]


def test_given_the_inventory_of_the_run_when_it_is_there_then_one_line_says_how_to_watch_it_and_can_be_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    show = demo.plain(said.append)
    monkeypatch.setattr("sys.argv", [".venv/bin/qctl", "demo"])

    show(look(0.0))
    for second in range(3):
        show(replace(look(float(second)), inventory=Path("/tmp/a run/inventory.yaml")))

    told = [line for line in said if "watch" in line]
    assert told == ["        watch it in another terminal: .venv/bin/qctl -i '/tmp/a run/inventory.yaml' tui"]


def test_the_table_has_a_row_for_each_host_and_one_for_all_and_says_nothing_of_a_host_that_it_cannot_know() -> None:
    cells = [[column.cell(item) for column in demo.COLUMNS if not column.wide] for item in demo.items(report())]

    assert cells == [
        ["web-1", 200, "199 (99.5%)", 200, 0, 219, None, None],
        ["all", None, None, None, 0, 219, 0, 0],
    ]


@pytest.mark.parametrize(("twice", "code", "words"), [(0, Exit.DONE, set()), (1, Exit.FAILED, {"BROKEN"})])
def test_given_a_judgement_when_it_is_over_then_the_verdict_and_the_exit_code_agree(
    twice: int, code: Exit, words: set[str]
) -> None:
    judged = report(twice=twice, directory=Path("/logs"))

    assert demo.exit_code(judged) == code
    assert {line.split()[0] for line in demo.verdict(judged)} & {"BROKEN"} == words
    assert demo.verdict(judged)[-1] == "The logs are in /logs."


def test_given_a_signal_when_followed_then_it_ends_as_interrupted_and_a_second_one_does_not_cut_the_tidying_short() -> (
    None
):
    tidied = []

    def frames() -> Generator[Progress | Report, None, None]:
        try:
            yield look(0.0)
        finally:
            signal.raise_signal(signal.SIGINT)
            tidied.append(True)

    with pytest.raises(Interrupted, match="SIGTERM"):
        demo.follow(frames(), lambda _: signal.raise_signal(signal.SIGTERM))

    assert tidied == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
