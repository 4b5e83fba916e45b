"""`qctl tui` where there is no terminal: one screen as text, and what it says when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from qctl.cli import tui
from qctl.cli.main import main
from qctl.errors import BrokerUnreachable, QctlError
from qctl.inventory.model import Inventory
from qctl.ops.status import Status
from qctl.tui.recording import Recorder, Recording, new_file
from qctl.tui.snapshot import Focus, Health, Snapshot, Source, SourceState, View
from tests.tui.test_recording import BEGAN_S, HOSTILE, shown

#: Nobody listens there.
NOWHERE = """\
version: 1
broker:
  amqp: amqp://127.0.0.1:1/
  management: http://127.0.0.1:1
  username: nobody
  password: {value: nothing}
consumers: {timeline: {handler: {exec: ["true"]}, quota: {}}}
hosts: {web-1: }
"""


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """A recording with a row of every kind, and a name that is an attack."""
    path = tmp_path / "recorded"
    recorder = Recorder(new_file(path), environment="production", broker="amqp://rabbit:5672/", at_s=BEGAN_S)
    recorder.write(shown())
    recorder.close()
    return str(path)


class TestOnce:
    @pytest.mark.parametrize(
        ("view", "words"),
        [
            ("hosts", "web-2"),
            ("queues", "[bold]x[/]"),
            ("consumers", "web-1/timeline/0"),
            ("quotas", "10+90/200"),
            ("dead", "timeline.dead"),
            ("events", "oncall"),
        ],
    )
    def test_every_view_of_a_recording_is_printed_as_lines_that_fit_and_every_character_can_be_seen(
        self,
        recorded: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        view: str,
        words: str,
    ) -> None:
        # given a place without a terminal, and a width
        monkeypatch.setenv("COLUMNS", "100")

        # when a view is asked for
        code = main(["tui", "--once", view, "--replay", recorded])

        # then it is there, in that width, without anything a terminal would obey
        out = capsys.readouterr().out
        assert code == 0
        assert words in out
        assert "PRODUCTION" in out
        assert max(map(len, out.splitlines())) <= 100
        assert HOSTILE not in out
        assert {unicodedata.category(character) for character in out} & {"Cc", "Cf", "Cs"} == {"Cc"}
        assert {character for character in out if unicodedata.category(character) == "Cc"} == {"\n"}

    def test_without_a_view_it_is_that_of_the_hosts_and_what_is_wrong_is_said_beside_it(
        self, recorded: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["tui", "--replay", recorded, "--once"]) == 0
        said = capsys.readouterr()
        assert "web-1" in said.out
        assert "management API: 401" in said.err

    def test_what_is_lacking_of_a_source_that_works_is_said_too(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "lacking"
        recorder = Recorder(new_file(path), environment="dev", broker="amqp://rabbit:5672/", at_s=BEGAN_S)
        lacking = SourceState("management API", Health.OK, BEGAN_S, "who lacks the tag `monitoring`")
        recorder.write(replace(shown(), sources=(lacking, SourceState("broker", Health.OK, BEGAN_S))))
        recorder.close()

        assert main(["tui", "--replay", str(path), "--once"]) == 0
        said = capsys.readouterr()
        assert said.err == "qctl: management API: who lacks the tag `monitoring`\n"
        assert "! management API: who lacks the tag" in said.out

    def test_the_views_are_those_of_the_console(self) -> None:
        assert [view.name.lower() for view in View] == list(tui.VIEWS)

    def test_when_nothing_can_be_reached_it_ends_with_4_and_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # given an inventory whose broker is not there
        inventory = tmp_path / "inventory.yaml"
        inventory.write_text(NOWHERE)

        # when one screen is asked for
        began_s = time.monotonic()
        code = main(["-i", str(inventory), "--connect-timeout", "1s", "tui", "--once"])

        # then it gives up in time, in one sentence
        said = capsys.readouterr()
        assert (code, said.out) == (4, "")
        assert "127.0.0.1:1" in said.err
        assert "Traceback" not in said.err
        assert time.monotonic() - began_s < 5


class Answering:
    """A source that shows these, a moment after one another, and then gives up with `error`, if with any."""

    def __init__(self, *snapshots: Snapshot, error: QctlError | None = None) -> None:
        self.snapshots, self.fails_with = snapshots, error
        self.error: QctlError | None = None
        self.did: list[object] = []
        self.stopped = threading.Event()

    def start(self, show: Callable[[Snapshot], None]) -> None:
        def run() -> None:
            for each in self.snapshots:
                if self.stopped.wait(0.1):
                    return
                show(each)
            self.error = self.fails_with
            if self.error is not None:
                show(self.snapshots[-1])

        threading.Thread(target=run).start()

    def look_at(self, focus: Focus) -> None:
        self.did.append(focus.view)

    def refresh(self) -> None:
        """Nothing new."""

    def stop(self) -> None:
        self.did.append("stop")
        self.stopped.set()


def answered(*health: Health) -> Snapshot:
    """A snapshot whose sources are so."""
    states = tuple(
        SourceState(str(number), each, words="it is down" if each is Health.FAILED else "")
        for number, each in enumerate(health)
    )
    return Snapshot(float(len(health)), Status(0.0, blocked=False), sources=states)


class TestWaiting:
    def test_it_waits_until_every_source_has_answered_or_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tui, "LISTEN_S", 0.0)
        good = answered(Health.OK, Health.FAILED)
        source = Answering(answered(Health.OK, Health.CONNECTING), good)
        assert tui.first(source, View.QUEUES, timeout_s=30) is good
        assert source.did == [View.QUEUES, "stop"]

    @pytest.mark.parametrize("other", [Health.FAILED, Health.OFF])
    def test_who_has_failed_is_waited_for_and_when_nobody_answers_it_says_so(
        self, other: Health, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tui, "LISTEN_S", 0.0)
        none, late = answered(Health.FAILED, other), answered(Health.OK, other)
        assert tui.first(Answering(none, late), View.HOSTS, timeout_s=30) is late
        with pytest.raises(BrokerUnreachable, match="nobody answers: 0: it is down") as caught:
            tui.first(Answering(none), View.HOSTS, timeout_s=0.3)
        assert caught.value.exit_code == 4

    def test_it_waits_no_longer_than_it_may(self) -> None:
        source = Answering(answered(Health.OK, Health.CONNECTING))
        began_s = time.monotonic()
        assert tui.first(source, View.HOSTS, timeout_s=0.5) == source.snapshots[0]
        assert time.monotonic() - began_s < 2

    def test_a_source_that_gives_up_ends_it_with_its_reason(self) -> None:
        source = Answering(answered(Health.CONNECTING), error=BrokerUnreachable("nobody answers"))
        with pytest.raises(BrokerUnreachable, match="nobody answers"):
            tui.first(source, View.HOSTS, timeout_s=30)
        assert source.did[-1] == "stop"


class TestRefused:
    def test_without_a_terminal_it_says_so_and_what_works_instead(self, recorded: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "qctl", "tui", "--replay", recorded],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "needs a terminal" in done.stderr
        assert "qctl tui --once" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--replay", "none"], "cannot be read"),
            (["--record", "new", "--replay", "old"], "exclude each other"),
            (["--record", "new", "--once"], "exclude each other"),
            (["--once", "-o", "json"], "qctl status -o json"),
            (["--once", "nothing"], "nothing"),
            (["--once", "--replay", "none"], "cannot be read"),
            (["--once", "--replay", __file__], "no recording"),
        ],
    )
    def test_what_cannot_be_is_refused_with_a_sentence_and_2(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        words: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["tui", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert words in said.err
        assert list(tmp_path.iterdir()) == []


class Screenless:
    """Stands where the console stands, and ends at once in a way that is told beforehand."""

    made: ClassVar[list[Screenless]] = []
    failure: BaseException | None = None
    return_code = 0
    last_words: tuple[str, ...] = ()

    def __init__(self, source: Source, inventory: Inventory | None, **given: object) -> None:
        self.source, self.inventory, self.given = source, inventory, given
        Screenless.made = [self]

    def run(self) -> None:
        """Nothing is shown."""
        self.colours = "NO_COLOR" not in os.environ
        self.source.stop()


@pytest.fixture
def screenless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Screenless]:
    """A console without a screen, in a place with an inventory."""
    monkeypatch.setattr(tui, "_needs_terminal", lambda: None)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("qctl.tui.app.Console", Screenless)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inventory.yaml").write_text(NOWHERE)
    return Screenless


class TestTheConsole:
    def test_it_gets_what_was_asked_for(self, screenless: type[Screenless], tmp_path: Path) -> None:
        # when it is called with everything
        code = main(["tui", "--read-only", "--record", "file", "--no-color", "--connect-timeout", "3s"])

        # then the console knows
        [made] = screenless.made
        assert code == 0
        assert isinstance(made.source, Recording)
        assert made.inventory is not None
        assert made.given["read_only"] is True
        assert made.given["connect_timeout_s"] == 3.0
        assert made.given["broker"] == "amqp://127.0.0.1:1/"
        assert made.colours is False
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600

    def test_by_itself_it_may_command_and_a_replay_may_not(
        self, screenless: type[Screenless], recorded: str, tmp_path: Path
    ) -> None:
        assert main(["tui"]) == 0
        assert screenless.made[0].given["read_only"] is False
        (tmp_path / "inventory.yaml").unlink()
        assert main(["tui", "--replay", recorded]) == 0
        [made] = screenless.made
        assert (made.inventory, made.given["read_only"], made.given["environment"]) == (None, True, "production")

    def test_how_it_ended_is_said_when_the_terminal_is_as_it_was(
        self, screenless: type[Screenless], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screenless, "last_words", ("a pause is not proven yet",))
        monkeypatch.setattr(screenless, "return_code", 143)
        assert main(["tui"]) == 143
        assert "qctl: a pause is not proven yet" in capsys.readouterr().err
        monkeypatch.setattr(screenless, "failure", BrokerUnreachable("nobody answers"))
        assert main(["tui"]) == 4
        assert "qctl: error: nobody answers" in capsys.readouterr().err
        monkeypatch.setattr(screenless, "failure", ZeroDivisionError("secret"))
        assert main(["tui"]) == 1
        said = capsys.readouterr().err
        assert "a bug in qctl" in said
        assert "secret" not in said
