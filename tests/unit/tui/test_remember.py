"""What was sorted and filtered is remembered; whatever is wrong with the file, the console starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qctl.tui import remember
from qctl.tui.remember import MAX_FILE_BYTES, Remembered
from qctl.tui.snapshot import View
from qctl.tui.views.listing import Arrangement

CHOSEN = Remembered(
    View.QUOTAS,
    wide=True,
    theme="qctl-light",
    arrangements={View.HOSTS: Arrangement("host", True, "wéb", True), View.QUEUES: Arrangement()},
)


def test_what_was_chosen_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "state" / "qctl" / "console.json"
    remember.save(file, CHOSEN)

    assert remember.load(file) == CHOSEN
    assert [each.name for each in file.parent.iterdir()] == ["console.json"]  # no half of it is left about
    assert file.stat().st_mode & 0o077 == 0


def test_who_never_chose_sees_the_deepest_queues_first(tmp_path: Path) -> None:
    found = remember.load(tmp_path / "none.json")

    assert found == Remembered()
    assert found.arrangement(View.QUEUES) == Arrangement("ready", descending=True)
    assert found.arrangement(View.HOSTS) == Arrangement()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 50_000,
        b'{"v": 2}',
        json.dumps({"v": 1, "view": "kitchen", "wide": 1, "theme": 7, "views": []}).encode(),
        json.dumps(
            {"v": 1, "views": {"hosts": 1, "queues": {"sort": ["x"], "match": {}, "descending": "yes"}}}
        ).encode(),
        json.dumps({"v": 1, "theme": "x" * 100, "views": {"queues": {"match": "\x1b[31m\ud800"}}}).encode(),
        b" " * (MAX_FILE_BYTES + 1),
    ],
)
def test_a_damaged_file_is_as_none_or_as_much_as_can_be_understood(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "console.json"
    file.write_bytes(content)

    found = remember.load(file)

    assert (found.view, found.wide, found.theme) == (View.HOSTS, False, "")
    assert set(found.arrangements.values()) <= {Arrangement()}
    remember.save(file, found)  # and it can be written again
    assert remember.load(file) == found


def test_a_folder_that_cannot_be_written_troubles_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    remember.save(tmp_path / "file" / "console.json", CHOSEN)

    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_place_is_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert remember.path() == tmp_path / "qctl" / "console.json"
    # the standard has it that a relative one counts for nothing
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert remember.path() == tmp_path / "home" / ".local" / "state" / "qctl" / "console.json"
