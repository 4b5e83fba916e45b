"""`status`, `why`, `events` and `quota` before a broker is contacted, and how they print what they found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qctl.cli import events
from qctl.cli.events import row
from qctl.cli.options import Output, Settings
from qctl.cli.quota import show_costs
from qctl.cli.status import MAX_NAME_CHARS, queue_columns, quota_columns, say_of_costs, show, table
from qctl.control.quota_reading import CostReading, ForeignReading
from qctl.inventory.load import load
from qctl.ops.events import Happened
from qctl.ops.status import (
    ConsumerRow,
    HostRow,
    Order,
    QueueRow,
    QuotaRow,
    Seen,
    Source,
    State,
    Status,
)
from tests.unit.cli.conftest import Run

NOW_S = datetime(2026, 11, 22, 13, 30, tzinfo=UTC).timestamp()
SEEN = Seen(Source.LIVE, NOW_S - 0.4)
OVERRIDE = Order("b1", "web-1/twitter", "oncall", None, NOW_S - 60, "gentle", None, ("100/h",))

FLEET = Status(
    at_s=NOW_S,
    blocked=False,
    hosts=(
        HostRow("web-1", State.MIXED, {State.HELD: 1, State.CONSUMING: 2}, processes=2, heard=2, seen=SEEN),
        HostRow("guest-7", State.UNKNOWN, listed=False, why="broker blocked"),
    ),
    consumers=(
        ConsumerRow("web-1", "timeline", "timeline", State.HELD, "quota twitter", running=0, concurrency=8, seen=SEEN),
    ),
    quotas=(
        QuotaRow("web-1", "twitter", ("100/h",), ("20000/h",), 100, 100, 3600.0, 1.5, override=OVERRIDE, seen=SEEN),
        QuotaRow("web-2", "twitter", ("20000/h",)),
    ),
    queues=(QueueRow("timeline", ready=0, out_per_s=2.0, out_estimated=True), QueueRow("mail")),
)


def printed(capsys: pytest.CaptureFixture[str], output: Output) -> str:
    """What `-o OUTPUT` prints of the fleet, not on a terminal."""
    show(Settings(output=output), FLEET)
    return capsys.readouterr().out


def test_each_table_row_begins_with_the_name_that_commands_take(capsys: pytest.CaptureFixture[str]) -> None:
    tables = [table.splitlines() for table in printed(capsys, Output.TABLE).split("\n\n")]

    assert [table[0].split()[0] for table in tables] == ["HOST", "CONSUMER", "QUOTA", "QUEUE"]
    assert [line.split()[0] for table in tables for line in table[1:]] == [
        "web-1",
        "guest-7",
        "web-1/timeline",
        "web-1/twitter",
        "web-2/twitter",
        "timeline",
        "mail",
    ]
    assert "1 held 2 consuming" in tables[0][1]
    assert "unknown (broker blocked)" in tables[0][2]
    assert "(not in the inventory)" in tables[0][2]
    assert tables[0][2].count("broker blocked") == 1


def test_what_is_not_known_is_a_dash_and_what_is_nothing_a_zero(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line.split("  ")[0]: line.split() for line in printed(capsys, Output.TABLE).splitlines() if line}

    assert lines["web-1/twitter"][1:4] == ["100/100", "100/h", "~1.5"]
    assert lines["web-1/twitter"][-3:] == ["by", "oncall:", "gentle"]
    assert lines["web-2/twitter"][1] == "-"
    assert lines["timeline"][1:5] == ["0", "-", "-", "~2.0"]
    assert lines["mail"][1:] == ["-", "-", "-", "-", "-", "0"]


def test_one_long_name_does_not_move_the_numbers_of_every_queue_away(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a\x1b" * 127
    rows = [QueueRow(long, work=False), QueueRow("mail")]
    table(Settings(output=Output.TABLE), queue_columns(NOW_S), rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == (r"a\x1b" * 127)[: MAX_NAME_CHARS - 1] + "…"
    assert max(map(len, lines)) < 140
    show(Settings(output=Output.JSON), replace(FLEET, queues=(rows[0],)))
    assert json.loads(capsys.readouterr().out)["queues"][0]["queue"] == long


def test_json_lines_are_the_items_of_the_document_each_with_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, Output.JSON))
    lines = [json.loads(line) for line in printed(capsys, Output.JSONL).splitlines()]

    assert lines == [*document["hosts"], *document["consumers"], *document["quotas"], *document["queues"]]
    assert [line["kind"] for line in lines] == ["host", "host", "consumer", "quota", "quota", "queue", "queue"]
    assert document["at"] == "2026-11-22T13:30:00.000Z"
    assert document["hosts"][0]["age_s"] == 0.4


def test_names_are_those_of_consumers(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, Output.NAME) == "web-1/timeline\n"


def test_an_event_is_one_line_that_says_whether_it_is_ignored() -> None:
    event = Happened(
        3, "a1", "mallory", "pause", "web-1", reason="because", claimed_by="x@y", ignored="not an operator"
    )

    line = row(event)
    assert line.split()[:4] == ["-", "mallory", "pause", "web-1"]
    assert line.endswith("because; as x@y; IGNORED: not an operator")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status", "web-9"), "Did you mean web-"),
        (("why", "web-1/timelime"), "Did you mean timeline?"),
        (("why", "web-2/mails"), "does not run consumer 'mails'"),
        (("why", "outbux"), "Did you mean outbox?"),
        (("why", "mails"), "The queue of consumer mails is outbox."),
        (("why", "web-1"), "qctl why web-1/timeline"),
        (("quota", "ls", "wab-1"), "Did you mean web-1?"),
        (("quota", "set", "web-1/twiter", "5/h", "--yes"), "Did you mean twitter?"),
        (("quota", "set", "web-1/twitter", "5", "--yes"), "expected a rate"),
        (("quota", "set", "web-1/twitter", "5/h", "--for", "1h", "--until", "14:00", "--yes"), "not both"),
        (("quota", "set", "web-1/twitter", "5/h"), "no terminal to ask on"),
        (("quota", "clear", "web-1/twitter"), "no terminal to ask on"),
        (("events", "--follow", "-o", "json"), "-o jsonl"),
    ],
)
def test_what_is_wrong_with_the_words_is_said_before_a_broker_is_contacted(
    run: Run, inventory: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_dry_run_contacts_nobody_and_says_what_it_concerns(run: Run, inventory: Path) -> None:
    done = run("quota", "set", "*/twitter", "5/h", "--dry-run", "-o", "json")

    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0
    assert (document["dry_run"], document["limits"]) == (True, ["5/h"])
    assert [item["host"] for item in document["items"]] == ["web-1", "web-2"]


@pytest.mark.parametrize("command", [("status",), ("events",), ("why", "web-1/timeline"), ("quota", "ls")])
def test_without_a_broker_they_end_with_4(run: Run, inventory: Path, command: tuple[str, ...]) -> None:
    done = run(*command)

    assert (done.returncode, done.stdout) == (4, "")
    assert "qctl broker up" in done.stderr


# Quotas


OTHERS = ForeignReading(12, 12, 60, 3600.0, 100, 28, since_s=NOW_S - 60, lasting=True)
COSTS = (
    CostReading("timeline", "refresh", "twitter", 1, 5_120, 3, 7),
    CostReading("timeline", "", "twitter", 1, 40, 1, 1),
)


def quota_table(capsys: pytest.CaptureFixture[str], *rows: QuotaRow) -> list[str]:
    table(Settings(), quota_columns(NOW_S, rows), rows)
    return capsys.readouterr().out.splitlines()


def test_windows_and_spending_of_others_have_columns_when_there_is_any(capsys: pytest.CaptureFixture[str]) -> None:
    plain = QuotaRow("web-1", "twitter", ("100/h",), (), 60, 100, 3600.0, seen=SEEN)

    (title, _) = quota_table(capsys, plain)
    assert ("WINDOW" in title, "SOMEONE ELSE" in title) == (False, False)

    shared = replace(plain, host="web-2", window="paced", burst_units=4, foreign=OTHERS)
    title, first, second = quota_table(capsys, plain, shared)
    assert first[title.index("WINDOW") :].split() == ["sliding", "-", "-"]
    assert "paced, 0.0278/s, burst 4" in second
    assert second.index("12 since ") < second.index("; API 72/100, here 60")


def test_costs_that_are_declared_wrong_are_shown_with_the_line_to_write(
    capsys: pytest.CaptureFixture[str], inventory: Path
) -> None:
    rows = tuple(QuotaRow(host, "twitter", ("100/h",), costs=COSTS) for host in ("web-1", "web-2"))

    show_costs(Settings(), load(inventory), replace(FLEET, quotas=rows))

    blank, title, right, low = capsys.readouterr().out.splitlines()
    assert (blank, title.split()[:2]) == ("", ["TASKS", "OF"])
    assert right.split() == ["timeline", "-", "twitter", "1", "1", "1", "80", "right", "-"]
    assert low.split()[:7] == ["timeline", "refresh", "twitter", "1", "3", "7", "10240"]
    assert low.endswith("too low: tasks need more than is reserved for them  quota: {twitter: 7}")


def test_status_only_says_that_costs_are_declared_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    right = QuotaRow("web-1", "twitter", ("100/h",), costs=COSTS[1:])
    wrong = [replace(right, costs=(replace(COSTS[0], consumer=f"c{number}"),)) for number in range(5)]

    say_of_costs(Settings(), replace(FLEET, quotas=(right,)))
    assert capsys.readouterr().err == ""

    say_of_costs(Settings(), replace(FLEET, quotas=(right, *wrong)))
    remark = "qctl: tasks of c0, c1, c2 and 2 more do not cost what the inventory declares; see `qctl quota ls`\n"
    assert capsys.readouterr().err == remark


def test_where_nothing_was_learnt_there_is_no_table_of_costs(
    capsys: pytest.CaptureFixture[str], inventory: Path
) -> None:
    show_costs(Settings(), load(inventory), FLEET)

    assert capsys.readouterr().out == ""


def test_a_notice_is_a_line_among_the_events() -> None:
    event = Happened(
        3, "a1", "worker", target="web-1/mail", reason="numbers", notice="foreign spending ends", since_s=NOW_S
    )

    line = row(event)

    assert line.split()[:4] == ["-", "worker", "notice", "web-1/mail"]
    assert "spending by someone else ends; since 2026-11-2" in line
    assert line.endswith("numbers")


def test_which_limit_is_used_up_and_when_there_is_enough_for_who_waits(capsys: pytest.CaptureFixture[str]) -> None:
    plain = QuotaRow("web-1", "multi", ("20/s", "5000/h"), (), 0, 20, 1.0, 2.0, NOW_S + 2_801, seen=SEEN)
    later = replace(plain, exhausted_rate="5000/h", spend_estimated=False)
    held = replace(plain, host="web-2", used_units=19, exhausted_at_s=None, held=True, held_until_s=NOW_S + 7)

    title, first, second = quota_table(capsys, later, held)

    assert "~46m41s of 5000/h" in first
    assert (first.split()[4], second.split()[4:6]) == ("2.0", ["~2.0", "-"])
    assert second[title.index("RETURNS") :].startswith("back ")


def test_no_events_are_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    async def nothing() -> AsyncIterator[Happened]:
        return
        yield

    for output, out in ((Output.TABLE, "AT "), (Output.JSON, "{"), (Output.JSONL, ""), (Output.NAME, "")):
        asyncio.run(events._print(Settings(output=output), nothing()))
        printed = capsys.readouterr().out
        assert printed.startswith(out)
        assert bool(printed) == bool(out)
