"""How far the control log was read, in a file: used when it is whole, and as if it were not there when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qctl.control import checkpoint
from qctl.control.desired import Desired, Reign
from qctl.control.log import Known

KNOWN = Known(17, "a nonce", Desired({"web-1": Reign("b", "n1", "a"), "web-2": Reign("c", "n2", None)}))


def test_given_what_was_saved_then_it_is_known_again_and_nothing_else_lies_there(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Known(3, "earlier", Desired()))
    checkpoint.save(tmp_path, KNOWN)

    assert checkpoint.load(tmp_path) == KNOWN
    assert [path.name for path in tmp_path.iterdir()] == ["control.json"]


def test_given_nothing_then_nothing_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.load(tmp_path) is None
    assert not caplog.text


def test_given_a_directory_that_cannot_be_written_then_that_is_said_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path / "missing", KNOWN)

    assert "the next start reads the whole control log" in caplog.text


@pytest.mark.parametrize(
    "changed",
    [
        {"v": 2},
        {"offset": -1},
        {"offset": True},
        {"id": ""},
        {"id": 1},
        {"reigns": []},
        {"reigns": {"web-1": {"ledger": "a"}}},
        {"reigns": {"web-1": {"ledger": 1, "since": "n", "before": None}}},
        {"reigns": {"web-1": {"ledger": "a", "since": "n", "before": 1}}},
    ],
)
def test_given_a_file_that_makes_no_sense_then_it_is_not_used(
    tmp_path: Path, changed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fields = {**json.loads(checkpoint.encode(KNOWN)), **changed}
    (tmp_path / "control.json").write_text(json.dumps(fields), encoding="utf-8")

    assert checkpoint.load(tmp_path) is None
    assert "reading the control log from its beginning" in caplog.text


@pytest.mark.parametrize("length", [0, 1, 50])
def test_given_half_a_file_then_it_is_not_used(tmp_path: Path, length: int) -> None:
    (tmp_path / "control.json").write_bytes(checkpoint.encode(KNOWN)[:length])

    assert checkpoint.load(tmp_path) is None
