"""The lines around the list: they answer in two seconds, in the room there is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import pytest

from qctl.ops.status import QueueRow, Seen, Source, Status
from qctl.tui import headline
from qctl.tui.actions import ACTIONS, Kind, allowed, key_text
from qctl.tui.cells import Cell, plain
from qctl.tui.headline import Place
from qctl.tui.history import History
from qctl.tui.scene import Scene
from qctl.tui.snapshot import Health, Page, Snapshot, SourceState, View
from qctl.tui.text import safe, width_of
from qctl.tui.views.every import LISTINGS
from qctl.tui.views.listing import Arrangement
from tests.tui import troubled
from tests.tui.troubled import NOW_S

PLACE = Place("development", "amqp://10.1.4.7:5672/")
WIDTHS = (20, 40, 80, 120, 200)


def scene(shown: Snapshot | None = None) -> Scene:
    """As it was shown."""
    return Scene(shown or troubled.troubled(), NOW_S, History(), 120, UTC)


def words(cell: Cell) -> str:
    """Its text, without the blanks around."""
    return plain(cell).strip()


def test_the_answers_name_who_runs_out_which_queue_grows_and_what_is_off() -> None:
    assert words(headline.answers(scene(), width=160)) == (
        "runs out 2 used up web-2/twitter ~3m12s   grows timeline ↑ 12.4/s   "
        "off ✗ 1 down on web-4  ◐ 1 held on web-1  ⏸ 1 paused by oncall"
    )
    # in fewer words where there is less room, and never more than the room
    assert words(headline.answers(scene(), width=80)) == (
        "runs out web-2/twitter ~3m12s   grows timeline ↑ 12.4/s   off ✗ 1 ◐ 1 ⏸ 1"
    )


def test_the_first_that_is_gone_is_of_those_that_are_not_gone_yet() -> None:
    gone = troubled.quota("web-8", used=20_000, exhausted_at_s=NOW_S + 1)
    later = troubled.quota("web-9", exhausted_at_s=NOW_S + 900)

    assert headline.first_out([gone, later, troubled.quota("web-7")]) is later
    assert headline.first_out([gone]) is None


def test_a_quiet_fleet_says_so_and_an_unknown_one_claims_nothing() -> None:
    status = troubled.troubled().status
    quiet = replace(status, consumers=status.consumers[1:2], quotas=status.quotas[2:3], queues=status.queues[1:3])
    nothing = Status(NOW_S, False)

    assert words(headline.answers(scene(Snapshot(NOW_S, quiet)), width=120)) == "runs out none   grows none   off none"
    assert words(headline.answers(scene(Snapshot(NOW_S, nothing)), width=120)) == "runs out -   grows -   off -"
    # nor does a queue of which nobody has said anything for long, whatever its rates were then
    stale = tuple(replace(row, seen=Seen(Source.BROKER, NOW_S - 600)) for row in status.queues)
    assert "grows -" in words(headline.answers(scene(Snapshot(NOW_S, replace(status, queues=stale))), width=120))


def test_the_first_line_says_where_and_how_old_each_source_is() -> None:
    wide = words(headline.where(PLACE, scene(), width=160))
    assert wide.startswith("qctl development  amqp://10.1.4.7:5672/")
    assert wide.endswith("● broker   ● workers   ● control log   ✗ management API failed 34s   13:30:00")
    # the trouble stays where room is short
    assert "✗ management API failed 34s" in words(headline.where(PLACE, scene(), width=80))
    assert "● 3 sources" in words(headline.where(PLACE, scene(), width=80))
    # and before anything came there is no time to tell
    assert words(headline.where(PLACE, None, width=80)) == "qctl development  amqp://10.1.4.7:5672/"


def test_production_is_loud_and_read_only_is_said() -> None:
    found = headline.where(Place("production", "amqp://x/", read_only=True), scene(), width=160)

    assert (" PRODUCTION ", "loud") in found
    assert " read-only" in plain(found)
    assert not any(style == "loud" for _, style in headline.where(PLACE, scene(), width=160))


def test_what_is_wrong_with_a_source_is_a_sentence_and_an_alarm_comes_first() -> None:
    shown = troubled.troubled()
    blocked = replace(shown, status=replace(shown.status, blocked=True))

    assert [words(each) for each in headline.trouble(scene(shown))] == [
        "✗ management API: it answers 401: set $QCTL_PASSWORD for guest"
    ]
    assert words(headline.trouble(scene(blocked))[0]).startswith("✗ broker: it takes no publishes")
    # what works, and not for all, is said behind what does not work
    lacking = SourceState("management API", Health.OK, NOW_S, "lacks the tag `monitoring`")
    reading = SourceState("control log", Health.CONNECTING, None, "it is being read")
    lost = SourceState("workers", Health.STALE, NOW_S, "the broker cannot be reached")
    partly = scene(replace(shown, sources=(SourceState("broker", Health.OK, NOW_S), lacking, reading, lost)))
    assert [words(each) for each in headline.trouble(partly)] == [
        "◐ workers: the broker cannot be reached",
        "! management API: lacks the tag `monitoring`",
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("hostile", [False, True])
def test_no_line_is_wider_than_the_screen(width: int, hostile: bool) -> None:
    found = scene(troubled.hostile() if hostile else None)
    wanted = Arrangement("ready", descending=True, match="web" * 20)
    right = headline.arrangement(wanted, LISTINGS[View.QUEUES](found), shown=1, scene=found, view=View.QUEUES, marked=3)
    lines = [
        headline.where(PLACE, found, width=width, remarks=[(("frozen", "accent"),)]),
        headline.answers(found, width=width),
        headline.views(found, View.QUEUES, right, width=width)[0],
        headline.keys(ACTIONS, View.QUEUES, width=width),
    ]
    for line in lines:
        assert width_of("".join(safe(text) for text, _ in line)) <= width


def test_tabs_have_their_number_and_what_is_in_them_and_can_be_found_under_a_pointer() -> None:
    line, ends = headline.views(scene(), View.HOSTS, (), width=100)
    text = plain(line)

    assert text.strip() == "1 Hosts 6  2 Queues 4  3 Consumers 7  4 Quotas 7  5 Dead 17  6 Events"
    assert [view for view, _ in ends] == list(View)
    assert [text[:end].split()[-1] for _, end in ends] == ["6", "4", "7", "7", "17", "Events"]


def test_each_tab_counts_its_own_and_no_letters_of_long_ago() -> None:
    def counts(view: View, shown: Snapshot) -> tuple[str, str]:
        found = {each: words(cell) for each, cell in headline.tabs(scene(shown), view, counts=True)}
        return found[View.QUEUES], found[View.DEAD]

    # the page is that of the view on screen
    paged = troubled.troubled(page=Page(1, 20, 10_000))
    assert counts(View.QUEUES, paged) == ("2 Queues 10000", "5 Dead 17")
    assert counts(View.DEAD, paged) == ("2 Queues 4", "5 Dead 17+")
    old = QueueRow("timeline.dead", work=False, ready=17, seen=Seen(Source.BROKER, NOW_S - 600))
    assert counts(View.HOSTS, replace(paged, dead=(old,))) == ("2 Queues 4", "5 Dead")


def test_how_the_list_is_arranged_is_said() -> None:
    found = scene(troubled.troubled(page=Page(2, 20, 10_000)))
    listing = LISTINGS[View.HOSTS](found)
    wanted = Arrangement("runs_out", match="web", invert=True)

    said = headline.arrangement(wanted, listing, shown=1, scene=found, view=View.HOSTS, marked=3)
    assert plain(said) == "▪ 3 marked  /!web 1 of 6  by runs out"

    queues = LISTINGS[View.QUEUES](found)
    paged = headline.arrangement(Arrangement("ready"), queues, shown=4, scene=found, view=View.QUEUES, marked=0)
    assert plain(paged) == "by ready  page 2 of 20"


def test_the_keys_are_those_of_the_view_from_the_one_table() -> None:
    for view in View:
        shown = plain(headline.keys(ACTIONS, view, width=300))
        for action in ACTIONS:
            if action.footer:
                assert (f"{key_text(action.keys[0])} {action.label.lower()}" in shown) is action.works_in(view)

    read_only = plain(headline.keys(allowed(read_only=True), View.HOSTS, width=300))
    assert "pause" not in read_only
    assert not any(action.kind is Kind.WRITE for action in allowed(read_only=True))
    # however narrow, the way out and the help stay
    assert plain(headline.keys(ACTIONS, View.HOSTS, width=30)).rstrip().endswith("? help  q quit")


def test_of_what_is_gone_it_says_when_the_first_is_back_where_nothing_else_presses() -> None:
    status = troubled.troubled().status
    gone = [troubled.quota(f"web-{number}", used=20_000, returns_at_s=NOW_S + 60 * number) for number in (2, 3)]
    held = troubled.quota("web-4", used=19_999, held=True, held_until_s=NOW_S + 7)
    shown = Snapshot(NOW_S, replace(status, quotas=(*gone, held)))

    assert words(headline.answers(scene(shown), width=160)).startswith("runs out 3 used up, back 13:30:07 ")
