"""`qctl dead` and `qctl queues`: what is refused before a broker is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qctl.cli.main import main
from qctl.errors import Exit
from tests.unit.cli.conftest import TWO_HOSTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dead", "replay", "task-4"), "replay dead letters: there is no terminal to ask on"),
        (("dead", "drop", "timeline", "--all"), "drop dead letters: there is no terminal to ask on"),
        (("queues", "purge", "outbox"), "purge outbox: there is no terminal to ask on"),
        (("dead", "replay", "--yes"), "or say --all"),
        (("dead", "drop", "timeline", "--yes"), "or say --all"),
        (("dead", "replay", "timeline", "--all", "--reason", "poison", "--yes"), "--all means every letter"),
        (("dead", "replay", "timelin", "--all", "--yes"), "Did you mean timeline?"),
        (("dead", "replay", "timeline", "x", "--all", "--yes"), "--all means every letter"),
        (("dead", "replay", "x", "--yes", "--rate", "fast"), "expected a rate N/PERIOD"),
        (("dead", "ls", "timelin"), "Did you mean timeline?"),
        (("dead", "ls", "--older-than", "soon"), "expected a duration"),
        (("dead", "ls", "-n", "0"), "-n"),
        (("dead", "show"), "ID"),
        (("queues", "purge", "outbx", "--yes"), "Did you mean outbox?"),
        (("queues", "purge", "mails", "--yes"), "The queue of consumer mails is outbox."),
        (("queues", "purge", "qctl.control.log", "--yes"), "has no queue 'qctl.control.log'"),
        (("queues", "ls", "--work", "--all"), "not both"),
        (("queues", "peek", "timeline", "-n", "1001"), "-n"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_asked(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Given an inventory whose broker does not run, and no terminal
    (tmp_path / "inventory.yaml").write_text(TWO_HOSTS)
    monkeypatch.chdir(tmp_path)

    # When it is called, then it is refused as a usage error, with what is wrong
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert main(arguments) == Exit.USAGE
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
