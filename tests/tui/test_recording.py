"""A session in a file: what was shown is shown again, and a damaged file plays what is whole."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qctl.control.quota_reading import CostReading, ForeignReading
from qctl.errors import BrokerUnreachable, QctlError, UsageError
from qctl.ops.events import Happened
from qctl.ops.status import (
    ConsumerRow,
    HeldBy,
    HostRow,
    Order,
    QueueRow,
    QuotaRow,
    Seen,
    Source,
    State,
    Status,
)
from qctl.tui import recording
from qctl.tui.recording import NAME, Recorder, Recording, new_file
from qctl.tui.replay import Head, ReplaySource, snapshots
from qctl.tui.snapshot import Focus, Health, Page, Snapshot, SourceState, TagRow

BEGAN_S = 1_790_000_000.0
#: What a foreign program may have put into a name: an escape, markup, a half of a surrogate.
HOSTILE = "\x1b[31m[bold]x[/] \ud800"


def shown(at_s: float = BEGAN_S, *, used: int = 10, queues: tuple[str, ...] = ("timeline", HOSTILE)) -> Snapshot:
    """A snapshot with a row of every kind and a value in every field that can have one."""
    seen = Seen(Source.LIVE, at_s)
    order = Order("e1", "web-1/timeline", "oncall", "ann@desk", at_s, "why not", at_s + 60, ("10/m",))
    host = HostRow("web-1", State.MIXED, {State.HELD: 1, State.CONSUMING: 2}, False, at_s, "why", "m1", 2, 1, seen)
    consumer = ConsumerRow(
        host="web-1",
        consumer="timeline",
        queue="timeline",
        state=State.HELD,
        why="quota",
        since_s=at_s,
        counts={State.HELD: 2},
        pauses=(order,),
        holds=(HeldBy("quota", "quota api", at_s + 9),),
        costs={"api": 1},
        running=0,
        waiting=None,
        concurrency=8,
        rate_per_s=1.5,
        settled={"acked": 7},
        seen=seen,
    )
    quota = QuotaRow("web-1", "api", ("200/m",), ("100/m",), used, 200, 60.0, 3.5, at_s + 1, None, None, order, "x")
    foreign = ForeignReading(90, 92, used, 60.0, 200, 100, at_s - 9, at_s + 9, lasting=True)
    costs = (CostReading("timeline", "refresh", "api", 1, 40, 3, 7),)
    quota = replace(quota, window="fixed", resets_at_s=at_s + 9, foreign=foreign, costs=costs)
    tag = TagRow("qctl/web-1/timeline/0", "web-1", "timeline", "timeline", State.PAUSED, "w", at_s, "ann", None, 1, 2)
    return Snapshot(
        at_s=at_s,
        status=Status(
            at_s=at_s - 0.5,
            blocked=True,
            hosts=(host, HostRow("web-2", State.UNKNOWN)),
            consumers=(consumer,),
            quotas=(quota,),
            queues=tuple(QueueRow(name, ready=used, consumers=("web-1/timeline",), seen=seen) for name in queues),
            notes=("something could not be learnt",),
        ),
        tags=(tag,),
        page=Page(2, 3, 1200),
        dead=(QueueRow("timeline.dead", work=False, ready=3),),
        events=(Happened(7, "e1", "oncall", "pause", "web-1/timeline", reason="r", local=True),),
        sources=(SourceState("broker", Health.OK, at_s), SourceState("management API", Health.FAILED, None, "401")),
    )


def recorded(path: Path, *given: Snapshot) -> Path:
    """A file with these snapshots."""
    recorder = Recorder(new_file(path), environment="production", broker="amqp://rabbit:5672/", at_s=BEGAN_S)
    for each in given:
        recorder.write(each)
    recorder.close()
    assert recorder.state.health is Health.OK
    return path


def played(source: ReplaySource, count: int) -> list[Snapshot]:
    """The first `count` that a replay shows."""
    enough, found = threading.Event(), []

    def show(snapshot: Snapshot) -> None:
        found.append(snapshot)
        if len(found) >= count:
            enough.set()

    source.start(show)
    assert enough.wait(20), found
    source.stop()
    return found


def without_state(snapshot: Snapshot) -> Snapshot:
    """As it was recorded."""
    return replace(snapshot, sources=tuple(state for state in snapshot.sources if state.name != NAME))


class TestThereAndBack:
    def test_what_was_shown_comes_back_value_for_value_and_only_differences_were_written(self, tmp_path: Path) -> None:
        # given snapshots in which a number changes, rows go, come and change their order
        first = shown()
        given = [
            first,
            replace(first, at_s=BEGAN_S + 1),
            replace(first, at_s=BEGAN_S + 2, status=replace(first.status, quotas=())),
            shown(BEGAN_S + 3, used=11),
            shown(BEGAN_S + 4, used=11, queues=("other", "timeline")),
            shown(BEGAN_S + 5, used=0, queues=("timeline", "other")),
        ]

        # when they are recorded
        path = recorded(tmp_path / "session", *given)

        # then they come back equal, of the same types, and what did not change was not written again
        back = list(snapshots(path))
        assert back == given
        assert isinstance(back[0].status.hosts[0].state, State)
        assert isinstance(next(iter(back[0].status.hosts[0].counts)), State)
        assert isinstance(back[0].sources[0].health, Health)
        lines = path.read_text().splitlines()
        assert json.loads(lines[0])["is"] == "qctl recording"
        ends = [number for number, line in enumerate(lines) if '"is":"shown"' in line]
        assert ends[1] == ends[0] + 1
        assert path.stat().st_mode & 0o777 == 0o600

    def test_a_replay_shows_them_as_far_apart_as_they_were_and_says_that_it_is_over(self, tmp_path: Path) -> None:
        # given two snapshots, 0.3 seconds apart
        path = recorded(tmp_path / "session", shown(), shown(BEGAN_S + 0.3, used=11))

        # when it is played
        began_s = time.monotonic()
        source = ReplaySource(path)
        found = played(source, 3)

        # then both come in their time, and the last once more, as the end
        assert time.monotonic() - began_s >= 0.3
        second = shown(BEGAN_S + 0.3, used=11)
        assert [without_state(each) for each in found] == [shown(), second, second]
        assert [each.sources[-1].health for each in found] == [Health.OK, Health.OK, Health.OFF]
        assert "over" in found[-1].sources[-1].words
        assert source.head == Head(BEGAN_S, "production", "amqp://rabbit:5672/")
        assert without_state(source.last()) == without_state(found[-1])

    def test_a_replay_ends_at_once_however_long_its_next_snapshot_takes(self, tmp_path: Path) -> None:
        source = ReplaySource(recorded(tmp_path / "session", shown(), shown(BEGAN_S + 600)))
        began_s = time.monotonic()
        played(source, 1)
        assert time.monotonic() - began_s < 2


class Given:
    """A source that shows what it is told, at once."""

    def __init__(self, *snapshots: Snapshot) -> None:
        self.snapshots, self.heard = snapshots, []
        self.error: QctlError | None = BrokerUnreachable("nobody answers")

    def start(self, show: Callable[[Snapshot], None]) -> None:
        for each in self.snapshots:
            show(each)

    def look_at(self, focus: Focus) -> None:
        self.heard.append(focus)

    def refresh(self) -> None:
        self.heard.append("refresh")

    def stop(self) -> None:
        self.heard.append("stop")


class TestRecordingALiveSource:
    def test_it_passes_everything_on_and_shows_how_the_recording_is(self, tmp_path: Path) -> None:
        # given a source that is recorded
        path = tmp_path / "session"
        given = Given(shown())
        source = Recording(given, Recorder(new_file(path), environment="e", broker="b", at_s=BEGAN_S))

        # when it runs, is asked, and ends
        found: list[Snapshot] = []
        source.start(found.append)
        source.look_at(Focus())
        source.refresh()
        source.stop()

        # then the screen and the file have the same, and the screen says that it is recorded
        assert [without_state(each) for each in found] == [shown()] == list(snapshots(path))
        assert found[0].sources[-1] == SourceState(NAME, Health.OK, BEGAN_S)
        assert source.error is given.error
        assert given.heard == [Focus(), "refresh", "stop"]

    def test_a_full_disk_ends_the_recording_and_nothing_else(self) -> None:
        # given a device that is always full
        recorder = Recorder(
            os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"), environment="e", broker="b", at_s=BEGAN_S
        )

        # when two snapshots are recorded
        found: list[Snapshot] = []
        Recording(Given(shown(), shown(BEGAN_S + 1)), recorder).start(found.append)

        # then both are shown, and the recording says why it is over
        assert [each.sources[-1].health for each in found] == [Health.FAILED, Health.FAILED]
        assert "no space left" in found[0].sources[-1].words

    def test_it_ends_at_its_bound_and_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recording, "MAX_RECORDING_BYTES", 1)
        path = tmp_path / "session"
        recorder = Recorder(new_file(path), environment="e", broker="b", at_s=BEGAN_S)
        recorder.write(shown())
        assert (recorder.state.health, "ended" in recorder.state.words) == (Health.FAILED, True)
        with pytest.raises(UsageError, match="no whole snapshot"):
            ReplaySource(path)

    def test_a_large_fleet_is_written_as_seldom_as_its_bound_wants_and_never_more_seldom_than_that(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a fleet of which a snapshot is more than may be written in ten seconds
        path = tmp_path / "session"
        monkeypatch.setattr(recording, "MAX_BYTES_PER_S", 100)
        recorder = Recorder(new_file(path), environment="e", broker="b", at_s=BEGAN_S)

        # when it is shown each second for more than a minute
        for second in range(70):
            recorder.write(shown(BEGAN_S + second, used=second))
        recorder.close()

        # then it was written some times, never twice within ten seconds, and each time whole
        found = list(snapshots(path))
        gaps_s = {later.at_s - earlier.at_s for earlier, later in itertools.pairwise(found)}
        assert min(gaps_s) >= 10
        assert max(gaps_s) <= recording.LONGEST_GAP_S
        assert found == [shown(each.at_s, used=int(each.at_s - BEGAN_S)) for each in found]

    def test_it_overwrites_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("mine")
        with pytest.raises(UsageError, match="is there already"):
            new_file(path)
        with pytest.raises(UsageError, match="cannot be written: no such file"):
            new_file(tmp_path / "none/x")
        assert path.read_text() == "mine"


class TestDamage:
    def test_a_file_cut_anywhere_plays_what_is_whole(self, tmp_path: Path) -> None:
        # given a recording of three snapshots
        given = [shown(BEGAN_S + number, used=number) for number in range(3)]
        whole = recorded(tmp_path / "session", *given).read_bytes()
        after_head = whole.index(b"\n") + 1
        cut = tmp_path / "cut"

        # when it is cut at any byte behind its head, then what comes is a beginning of it, and no error
        lengths = set()
        for end in range(after_head, len(whole), 7):
            cut.write_bytes(whole[:end])
            found = list(snapshots(cut))
            assert found == given[: len(found)]
            lengths.add(len(found))
        assert lengths == {0, 1, 2}

    @pytest.mark.parametrize(
        "line",
        [
            b"\x00\xff garbage",
            b"[1, 2]",
            b"{}",
            b'{"is": "hosts", "key": "web-1", "row": {"state": "sleeping"}}',
            b'{"is": "hosts", "key": "web-1", "row": 5}',
            b'{"is": "hosts", "keys": ["nobody"]}',
            b'{"is": "hosts", "keys": [[]]}',
            b'{"is": "shown", "at_s": NaN, "status_at_s": 0, "blocked": false, "notes": [], "page": {}}',
            b'{"is": "quotas", "key": "web-1/api", "row": {"exhausted_at_s": Infinity}}',
            b'{"is": "quotas", "key": "web-1/api", "row": {"spend_per_s": 1e999}}',
            b'{"is": "quotas", "key": "web-1/api", "row": {"used_units": 1' + 400 * b"0" + b"}}",
            b"[" * 100_000,
            b'{"is": []}',
        ],
        ids=lambda line: line[:40].decode(errors="replace"),
    )
    def test_a_damaged_line_ends_it_with_a_sentence_and_what_came_before_is_shown(
        self, tmp_path: Path, line: bytes
    ) -> None:
        # given a recording with a line in it that cannot be
        path = recorded(tmp_path / "session", shown())
        number = path.read_bytes().count(b"\n") + 1
        with path.open("ab") as file:
            file.write(line + b"\n" + b'{"is":"hosts","keys":[]}\n')

        # when it is played
        found = played(ReplaySource(path), 2)

        # then what is whole is shown, and then why nothing follows
        assert [without_state(each) for each in found] == [shown(), shown()]
        assert found[-1].sources[-1].health is Health.OFF
        assert f"damaged at line {number}" in found[-1].sources[-1].words

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "no recording"),
            (b"\x89PNG\r\n", "no recording"),
            (b'{"kind": "other"}\n', "no recording"),
            (b"[]\n", "no recording"),
            (b'{"is":"qctl recording","v":2,"began_s":1}\n', "another version"),
            (b'{"is":"qctl recording","v":1,"began_s":"soon"}\n', "no recording"),
            (b'{"is":"qctl recording","v":1,"began_s":1' + 400 * b"0" + b"}\n", "no recording"),
            (b'{"is":"qctl recording","v":1,"began_s":1}\n', "no whole snapshot"),
            (b'{"is":"qctl recording","v":1,"began_s":1}\n{"is"\n', "damaged at line 2"),
        ],
    )
    def test_what_is_no_recording_is_refused_with_a_sentence(self, tmp_path: Path, content: bytes, words: str) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            ReplaySource(path)

    def test_what_cannot_be_read_is_refused_with_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read: no such file"):
            ReplaySource(tmp_path / "none")
        with pytest.raises(UsageError, match="cannot be read: is a directory"):
            ReplaySource(tmp_path)
