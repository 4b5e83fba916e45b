"""What each view lists, in which order, and in which words: from built snapshots, without a terminal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import pytest

from qctl.control.quota_reading import CostReading, ForeignReading
from qctl.ops.events import Happened
from qctl.ops.status import ConsumerRow, QueueRow, QuotaRow, Seen, Source, State, Status
from qctl.tui import words
from qctl.tui.cells import plain
from qctl.tui.history import History
from qctl.tui.scene import Scene
from qctl.tui.snapshot import Snapshot, TagRow, View
from qctl.tui.text import parts, safe
from qctl.tui.views.details import detail
from qctl.tui.views.every import LISTINGS
from qctl.tui.views.listing import Arrangement, arranged, by_column, filter_words, flowed, next_sort, without_rows
from tests.tui import troubled
from tests.tui.troubled import NOW_S


def scene(shown: Snapshot | None = None, *, later_s: float = 0.0, width: int = 120) -> Scene:
    """The troubled fleet, so long after it was shown."""
    snapshot = shown or troubled.troubled()
    past = History()
    past.add(snapshot)
    return Scene(snapshot, snapshot.at_s + later_s, past, width, UTC)


def rows(view: View, found: Scene, wanted: Arrangement | None = None) -> dict[str, dict[str, str]]:
    """The list as it is shown: key -> column -> words."""
    listing = LISTINGS[view](found)
    ids = [column.id for column in listing.columns]
    shown = {}
    for row in arranged(listing, wanted or Arrangement()):
        cells = listing.cells(row)
        assert len(cells) == len(ids)
        texts = ["".join(text for text, _ in parts(cell, 34)) for cell in cells]
        shown[listing.key(row)] = dict(zip(ids, texts, strict=True))
    return shown


def test_hosts_say_who_needs_somebody_first_and_why() -> None:
    # given a server that is down, one held, one that runs out, one paused in part, one that is late
    found = rows(View.HOSTS, scene())

    # then those come first, the others by name
    assert list(found) == ["web-4", "web-1", "lab-1", "web-2", "web-3", "web-10"]
    # and the states stand in shape and word, with what matters of them
    assert [row["state"] for row in found.values()] == [
        "✗ down 42s",
        "◐ held 14:00:07",
        "● consuming",
        "● consuming",
        "◑ 1 paused 1 consuming",
        "● consuming",
    ]
    # and quotas in plain digits with when they are gone, back, or unknown
    assert found["web-1"]["quota"].split() == ["twitter", "━" * 14, "20000/20000"]
    assert found["web-10"]["quota"].endswith("~5000/20000")
    assert found["web-4"]["quota"].endswith("-/20000")
    assert {host: row["runs_out"] for host, row in found.items()} == {
        "web-4": "-",
        "web-1": "back 14:00:07",
        "lab-1": "ledger fault",
        "web-2": "~3m12s",
        "web-3": "~2h00m",
        "web-10": "lasts",
    }
    assert found["web-2"]["quota_2"].split()[0] == "mail"
    # and ages, causes, and sums of what is known
    assert (found["web-4"]["heard"], found["web-10"]["heard"], found["web-2"]["heard"]) == ("42s", "12s", "now")
    assert found["web-3"]["why"] == "timeline: by oncall: deploy of the parser"
    assert found["lab-1"]["why"] == "not in the inventory"
    assert (found["web-3"]["rate"], found["web-3"]["running"]) == ("8.0", "6/16")
    assert (found["web-4"]["rate"], found["web-4"]["running"]) == ("-", "-")


def test_ages_and_times_go_on_while_nothing_comes() -> None:
    found = rows(View.HOSTS, scene(later_s=30.0))

    assert found["web-4"]["state"] == "✗ down 1m12s"
    assert found["web-2"]["runs_out"] == "~2m42s"
    assert found["web-2"]["heard"] == "30s"


def test_what_is_late_says_so_and_what_is_of_this_second_does_not() -> None:
    found = scene()

    assert words.age(Seen(Source.LIVE, NOW_S - 2.0), found) == (("now", "dim"),)
    assert words.age(Seen(Source.BROKER, NOW_S - 6.5), found) == (("6s", "dim"),)
    assert words.age(Seen(Source.LIVE, NOW_S - 12.0), found) == (("12s", "warn"),)
    assert words.age(None, found) == (("-", "dim"),)


def test_queues_say_which_grow_and_when_they_are_empty() -> None:
    found = rows(View.QUEUES, scene(), Arrangement("ready", descending=True))

    assert list(found) == ["timeline", "mail", "idle", "unknown"]  # what is not known comes last
    assert [row["trend"] for row in found.values()] == ["↑ 12.4", "↓ 3.0", "0", "-"]
    assert [row["empty"] for row in found.values()] == ["nobody", "~30s", "empty", "-"]
    assert [row["consumers"] for row in found.values()] == ["0/1", "1/1", "-", "-"]  # of web-2/idle nothing is known
    assert [row["ready"] for row in found.values()] == ["7312", "90", "0", "-"]


def test_of_takers_that_are_not_known_nobody_is_said_to_take_nothing() -> None:
    # given a queue with tasks that got fewer until lately, one taker that is paused, and one of which nothing is heard
    status, soon_s = troubled.troubled().status, troubled.NOW_S + 30
    queue = QueueRow("mail", ready=9, empty_at_s=soon_s, consumers=("web-3/mail", "web-4/mail"), seen=troubled.BROKER)
    paused, silent = troubled.consumer("web-3", "mail", State.PAUSED), troubled.consumer("web-4", "mail", State.UNKNOWN)

    def said(*takers: ConsumerRow) -> tuple[str, str]:
        shown = troubled.troubled(status=replace(status, queues=(queue,), consumers=takers))
        row = rows(View.QUEUES, scene(shown))["mail"]
        return row["consumers"], row["empty"]

    assert said(paused, silent) == said(paused) == ("-", "~30s")
    assert said(paused, replace(silent, state=State.CONSUMING)) == ("1/2", "~30s")
    assert said(paused, replace(silent, state=State.DOWN)) == ("0/2", "nobody")


def test_sums_of_which_a_part_is_not_known_say_so() -> None:
    # given a host with a consumer at work, and one of which nothing is heard, or that is down
    silent = troubled.consumer("web-2", "mail", State.UNKNOWN, running=None, rate_per_s=None, concurrency=None)

    def said(other: ConsumerRow) -> tuple[str, str]:
        status = replace(troubled.troubled().status, consumers=(troubled.consumer("web-2", "timeline"), other))
        row = rows(View.HOSTS, scene(troubled.troubled(status=status)))["web-2"]
        return row["rate"], row["running"]

    assert said(silent) == ("4.0+", "3/8+")
    assert said(replace(silent, state=State.DOWN)) == ("4.0", "3/8")


@pytest.mark.parametrize(
    ("source", "state"), [(Source.LIVE, "✗ down"), (Source.BROKER, "✗ down"), (Source.LOG, "✗ down 2s")]
)
def test_since_when_something_is_down_is_not_when_somebody_said_so(source: Source, state: str) -> None:
    # given what is down for nobody knows how long, told of two seconds ago, or silent since then
    seen = Seen(source, NOW_S - 2)
    shown = troubled.troubled(
        status=Status(NOW_S, False, hosts=(replace(troubled.host("web-9", State.DOWN), since_s=None, seen=seen),)),
        tags=(TagRow("qctl/web-9/mail/0", "web-9", "mail", "mail", State.DOWN, seen=seen),),
    )

    for view in (View.HOSTS, View.CONSUMERS):
        assert [row["state"] for row in rows(view, scene(shown)).values()] == [state]


def test_a_depth_in_a_detail_says_when_it_was() -> None:
    # given a queue whose depth was told of twice, the last time some minutes ago
    past = History()
    for step in range(2):
        queue = replace(troubled.QUEUES[0], seen=Seen(Source.BROKER, NOW_S + 5 * step))
        past.add(troubled.troubled(at_s=NOW_S + 5 * step, status=Status(NOW_S, False, queues=(queue,)), dead=()))

    def title(later_s: float) -> str:
        past.add(Snapshot(NOW_S + later_s, Status(NOW_S, False)))
        found = detail(Scene(troubled.troubled(), NOW_S + later_s, past, 120, UTC), View.QUEUES, "timeline")
        assert found is not None
        return next(line for line in map(plain, flowed(found.lines, 200)) if "lately" in line)

    assert title(9.0) == "7312 ready, at most 7312 lately"
    assert title(305.0) == "7312 ready 5m00s ago, at most 7312 lately"


def test_a_list_without_rows_claims_nothing() -> None:
    # given dead letters of which nothing was learnt, or a filter of the broker's that leaves none
    nothing = LISTINGS[View.DEAD](scene(Snapshot(NOW_S, Status(NOW_S, False))))

    assert without_rows(nothing, Arrangement()) == "No queue of dead letters is known yet."
    assert without_rows(nothing, Arrangement(match="zzz")) == "Nothing matches; Esc clears the filter."


def test_a_queue_whose_rates_nobody_tells_grows_by_its_depth() -> None:
    # given three looks at a queue within ten seconds, ten tasks more each time
    past = History()
    queue = replace(troubled.QUEUES[0], in_per_s=None, out_per_s=None)
    for step in range(3):
        seen = replace(troubled.BROKER, at_s=NOW_S + 5 * step)
        row = replace(queue, ready=100 + 10 * step, seen=seen)
        shown = troubled.troubled(at_s=NOW_S + 5 * step)
        shown = replace(shown, status=replace(shown.status, queues=(row,)))
        past.add(shown)

    # then it grows by two a second
    assert Scene(shown, shown.at_s, past).growth_per_s(row) == pytest.approx(2.0)


def test_consumers_quotas_dead_letters_and_events_say_by_whom() -> None:
    consumers = rows(View.CONSUMERS, scene())
    assert list(consumers)[:3] == ["qctl/web-4/timeline/0", "qctl/web-1/timeline/0", "qctl/web-3/timeline/0"]
    assert consumers["qctl/web-3/timeline/0"]["tag"] == "web-3/timeline/0"
    assert consumers["qctl/web-3/timeline/0"]["state"] == "⏸ paused by oncall"
    assert consumers["qctl/web-3/timeline/0"]["why"] == "deploy of the parser"

    quotas = rows(View.QUOTAS, scene())
    assert list(quotas)[:3] == ["lab-1/twitter", "web-1/twitter", "web-2/twitter"]
    assert quotas["web-10/twitter"]["override"] == "oncall until 14:00:00  half speed"

    dead = rows(View.DEAD, scene())
    assert [(key, row["ready"]) for key, row in dead.items()] == [("timeline.dead", "17"), ("mail.dead", "0")]

    events = rows(View.EVENTS, scene())
    assert list(events) == ["9", "7"]  # the newest first
    assert events["9"]["why"].startswith("ignored: guest is no operator")
    assert events["7"] | {"id": ""} == {
        "at": "13:20:00",
        "by": "oncall",
        "verb": "pause",
        "target": "web-3/timeline",
        "why": "until 14:00:00  deploy",
        "as": "ann@laptop",
        "id": "",
    }


def test_rows_are_sorted_with_the_unknown_last_either_way() -> None:
    up = rows(View.HOSTS, scene(), Arrangement("rate"))
    down = rows(View.HOSTS, scene(), Arrangement("rate", descending=True))

    assert (next(iter(up)), next(iter(down))) == ("web-1", "web-3")
    assert list(up)[-1] == list(down)[-1] == "web-4"
    assert list(rows(View.HOSTS, scene(), Arrangement("host")))[-2:] == ["web-4", "web-10"]  # as people count


def test_a_filter_finds_text_wherever_it_stands_and_turns_round() -> None:
    assert list(rows(View.HOSTS, scene(), Arrangement(match="WEB-1"))) == ["web-1", "web-10"]
    assert list(rows(View.HOSTS, scene(), Arrangement(match="paused"))) == ["web-3"]
    assert list(rows(View.HOSTS, scene(), Arrangement(match="web", invert=True))) == ["lab-1"]
    assert filter_words("!web-1 ") == ("web-1", True)
    assert filter_words("!") == ("", False)
    assert len(filter_words("x" * 5_000)[0]) == 100


def test_the_next_column_sorts_and_the_last_gives_the_order_of_need_back() -> None:
    columns = LISTINGS[View.HOSTS](scene()).columns
    wanted, seen = Arrangement(), []
    for _ in range(30):
        wanted = next_sort(columns, wanted, wide=False)
        seen.append(wanted.sort)
        if not wanted.sort:
            break
    assert seen[:3] == ["host", "state", "quota"]
    assert "machine" not in seen  # a wide column, not shown
    assert seen[-1] == ""
    # names from A, numbers from the greatest, times from the soonest; once more: the other way round
    assert not by_column(columns, Arrangement(), "host").descending
    assert by_column(columns, Arrangement(), "rate").descending
    assert not by_column(columns, Arrangement(), "runs_out").descending
    assert by_column(columns, Arrangement("runs_out"), "runs_out").descending


@pytest.mark.parametrize(
    ("view", "key", "expected"),
    [
        (View.HOSTS, "web-3", ["timeline: by oncall: deploy of the parser", "QUOTAS", "timeline  ⏸ paused by oncall"]),
        (View.QUEUES, "timeline", ["7312 ready  40 unacked", "grows/s ↑ 12.4"]),
        (View.CONSUMERS, "qctl/web-1/timeline/0", ["◐ held 14:00:07", "· not paused", "since it started 100 acked"]),
        (View.QUOTAS, "web-10/twitter", ["an estimate", "set by oncall until 14:00:00", "SPENT BY"]),
        (View.DEAD, "timeline.dead", ["17 of timeline were given up on"]),
        (View.EVENTS, "9", ["by guest", "ignored: guest is no operator"]),
    ],
)
def test_a_detail_says_why(view: View, key: str, expected: list[str]) -> None:
    found = detail(scene(), view, key)

    assert found is not None
    text = "\n".join("".join(text for text, _ in line) for line in flowed(found.lines, 200))
    for each in expected:
        assert each in text
    assert detail(scene(), view, "no such key") is None


@pytest.mark.parametrize("view", list(View))
def test_hostile_names_and_an_empty_fleet_are_rows_like_others(view: View) -> None:
    # given names with escapes, markup, direction marks and ten thousand letters; and nothing at all
    found = scene(troubled.hostile())
    for key, row in rows(view, found).items():
        assert all(safe(text).isprintable() for text in row.values())
        shown = detail(found, view, key)
        assert shown is not None
        for line in flowed(shown.lines, 60):
            assert "\x1b" not in "".join(safe(text) for text, _ in line)

    nothing = scene(Snapshot(NOW_S, replace(troubled.troubled().status, hosts=(), consumers=(), quotas=(), queues=())))
    assert rows(view, nothing) == {}
    assert LISTINGS[view](nothing).empty


def test_before_anything_was_heard_everything_is_unknown_and_nothing_nought() -> None:
    # given what is shown first: the inventory alone
    status = troubled.troubled().status
    hosts = tuple(replace(row, state=State.UNKNOWN, counts={}, since_s=None, seen=None) for row in status.hosts)
    none = {"running": None, "rate_per_s": None, "concurrency": None, "seen": None, "since_s": None}
    consumers = tuple(replace(row, state=State.UNKNOWN, pauses=(), holds=(), **none) for row in status.consumers)
    quotas = tuple(
        replace(row, used_units=None, limit_units=None, spend_per_s=None, exhausted_at_s=None, fault="", seen=None)
        for row in status.quotas
    )
    shown = Snapshot(NOW_S, replace(status, hosts=hosts, consumers=consumers, quotas=quotas, queues=()))

    found = rows(View.HOSTS, scene(shown))

    assert list(found) == ["lab-1", "web-1", "web-2", "web-3", "web-4", "web-10"]
    assert {row["state"] for row in found.values()} == {"? unknown"}
    assert {row["runs_out"] for row in found.values()} == {"-"}
    assert {(row["rate"], row["running"], row["heard"]) for row in found.values()} == {("-", "-", "-")}
    assert {row["quota"].split()[-1] for row in found.values()} == {"-/20000"}


OTHERS = ForeignReading(
    6_000, 6_000, 5_000, 3_600.0, 20_000, 9_000, since_s=troubled.at(13, 2), until_s=NOW_S + 600, lasting=True
)


def shared(*quotas: QuotaRow) -> Scene:
    """The troubled fleet with these quotas."""
    return scene(troubled.troubled(status=replace(troubled.troubled().status, quotas=quotas)), width=160)


def test_what_somebody_else_spends_is_marked_in_words_on_hosts_and_quotas() -> None:
    # given two hosts that spend 5000 of 20000, one of which somebody else does too
    found = shared(troubled.quota("web-2", foreign=OTHERS), troubled.quota("web-3"))
    words_ = "the API counts 11000 of 20000 used"

    quotas, hosts = rows(View.QUOTAS, found), rows(View.HOSTS, found)
    assert [quotas[f"{name}/twitter"]["used"].split()[-1] for name in ("web-2", "web-3")] == [
        "5000+6000/20000",
        "5000/20000",
    ]
    assert quotas["web-2/twitter"]["others"].startswith("6000 since 13:02:00; API 11000/")
    assert quotas["web-3/twitter"]["others"] == ""
    assert hosts["web-2"]["why"] == "twitter: 6000 by someone else"
    assert "someone else" not in hosts["web-3"]["why"]
    opened = detail(found, View.QUOTAS, "web-2/twitter")
    assert opened is not None
    assert f"{words_}; this host spent 5000; 6000 by someone else, since 13:02:00" in " ".join(
        plain(cell).strip("· ") for cell in flowed(opened.lines, 200)
    )
    # and who filters for it finds it
    assert list(rows(View.QUOTAS, found, Arrangement(match="someone else"))) == ["web-2/twitter"]


def test_a_quota_that_others_have_used_up_is_used_up() -> None:
    gone = troubled.quota("web-2", used=14_000, foreign=OTHERS, returns_at_s=troubled.at(14, 0, 7))

    found = rows(View.QUOTAS, shared(gone))["web-2/twitter"]

    assert (found["runs_out"], found["used"].split()[0]) == ("back 14:00:07", "━" * len(found["used"].split()[0]))


def test_columns_of_others_and_windows_are_there_when_there_is_something_in_them() -> None:
    ids = {column.id for column in LISTINGS[View.QUOTAS](scene()).columns}
    assert not ids & {"others", "window"}

    found = shared(
        troubled.quota("web-1", window="fixed", resets_at_s=troubled.at(14, 0)),
        troubled.quota("web-2", window="paced", burst_units=4),
    )
    assert [row["window"] for row in rows(View.QUOTAS, found).values()] == [
        "fixed, resets 14:00:00",
        "paced, 5.56/s, burst 4",
    ]


def test_a_quota_says_what_its_tasks_cost_and_what_to_declare() -> None:
    cost = CostReading("timeline", "refresh", "twitter", 1, 180, 3, 7)
    found = shared(troubled.quota("web-2", costs=(cost,)))

    opened = detail(found, View.QUOTAS, "web-2/twitter")

    assert opened is not None
    assert (
        "· timeline refresh: declared 1; half of 180 tasks need at most 3, 95 % at most 7; "
        "too low: tasks need more than is reserved for them; declare 7"
    ) in [plain(cell) for cell in flowed(opened.lines, 200)]


def test_a_notice_of_a_host_is_an_event() -> None:
    notice = Happened(
        11,
        "c1",
        "worker",
        target="web-2/twitter",
        at="2026-11-22T13:29:00.000Z",
        reason="the API counts 11000 of 20000 used",
        notice="foreign spending begins",
        since_s=troubled.at(13, 2),
    )
    found = scene(replace(troubled.troubled(), events=(notice,)))

    row = rows(View.EVENTS, found)["11"]
    assert (row["by"], row["verb"], row["target"]) == ("worker", "notice", "web-2/twitter")
    assert row["why"].startswith("spending by someone else begins since 13:0")
    assert detail(found, View.EVENTS, "11") is not None


@pytest.mark.parametrize(
    ("width", "shown"),
    [(24, "20/s, 100/30s, 5000/h"), (21, "20/s, 100/30s, 5000/h"), (20, "20/s, 100/30s, …"), (9, "20/s, …"), (3, "…")],
)
def test_limits_are_cut_between_them_and_never_in_a_number(width: int, shown: str) -> None:
    assert words.limits(("20/s", "100/30s", "5000/h"), width) == shown


def test_a_quota_that_a_consumer_is_held_for_is_back_then_and_never_lasts() -> None:
    # given 57 of 60 spent and a task that costs more than the rest, with an end that is known, and one that is not
    short = troubled.quota("web-2", used=57, limit_units=60, held=True, held_until_s=NOW_S + 7, spend_per_s=1.0)
    found = shared(short, replace(short, host="web-3", held_until_s=None))

    for view, keys in ((View.QUOTAS, ("web-2/twitter", "web-3/twitter")), (View.HOSTS, ("web-2", "web-3"))):
        shown = rows(view, found)
        assert [shown[key]["runs_out"] for key in keys] == ["back 13:30:07", "too little"]
