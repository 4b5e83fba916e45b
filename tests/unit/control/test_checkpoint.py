"""How far the control log was read, in a file: used when it is whole, and as if it were not there when it is not."""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qctl.control import checkpoint
from qctl.control.desired import Desired, Override, Pause, Reign
from qctl.control.following import NOTHING, Known
from qctl.control.seen import FILTER_BYTES, Seen
from qctl.control.target import Scope, Target

PAUSE = Pause("a" * 32, "oncall", None, "then", "sick", 7.5, Target(host="*", consumer="c"), (Target(host="web-1"),))
SET = Override("b" * 32, "oncall", "ann@desk", "then", None, None, "*", "api", ("5/s", "9/h"), (Scope("web-1", "*"),))
KNOWN = Known(
    17,
    "a nonce",
    Desired(
        {"web-1": Reign("b", "n1", "a", "tasks"), "web-2": Reign("c", "n2", None, "tasks")},
        (PAUSE, replace(PAUSE, id="c" * 32, until_s=None, reason=None, target=Target(tag="*/0"), lifted=())),
        (SET,),
        Seen(b"\1" + bytes(FILTER_BYTES - 1), ("a" * 32, "c" * 32)),
    ),
)


def test_given_what_was_saved_then_it_is_known_again_and_nothing_else_lies_there(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Known(3, "earlier", Desired()))
    checkpoint.save(tmp_path, KNOWN)

    assert checkpoint.load(tmp_path) == KNOWN
    assert [path.name for path in tmp_path.iterdir()] == ["control.json"]


def test_given_a_log_with_hellos_alone_then_the_file_is_small(tmp_path: Path) -> None:
    assert len(checkpoint.encode(Known(3, "a nonce", Desired()))) < 200
    assert len(checkpoint.encode(KNOWN)) < 10_000


NEW = replace(PAUSE, id="d" * 32, user="deploy")
OWN = replace(PAUSE, id="e" * 32, user="tasks", target=Target(host="web-1"), lifted=())
FOREIGN = replace(OWN, id="f" * 32, target=Target(host="web-3"))


@pytest.mark.parametrize(
    ("operators", "pauses", "overrides"),
    [
        (frozenset({"oncall"}), ("a", "c", "e"), 1),
        (frozenset({"deploy", "tasks"}), ("d", "e", "f"), 0),
        (None, ("a", "c", "d", "e", "f"), 1),
    ],
    ids=["one fewer", "others", "whoever"],
)
def test_given_other_operators_now_then_the_log_is_read_anew_over_what_they_commanded(
    tmp_path: Path, operators: frozenset[str] | None, pauses: tuple[str, ...], overrides: int
) -> None:
    # given what was commanded, the host's own pause of itself too, by a log that may be gone
    before = frozenset({"oncall", "deploy", "web"})
    desired = replace(KNOWN.desired, pauses=(*KNOWN.desired.pauses, NEW, OWN, FOREIGN))
    checkpoint.save(tmp_path, replace(KNOWN, desired=desired), before)

    # when other operators are obeyed
    found = checkpoint.load(tmp_path, operators)

    # then the log is read from its beginning, all of it obeyed again, and what is still theirs holds meanwhile
    assert found is not None
    assert (found.offset, found.id) == (NOTHING.offset, NOTHING.id)
    assert tuple(each.id[0] for each in found.desired.pauses) == pauses
    assert len(found.desired.overrides) == overrides
    assert found.desired.seen == Seen()
    # and with the same ones as before it goes on
    assert checkpoint.load(tmp_path, before) == replace(KNOWN, desired=desired)


def test_given_a_file_of_an_older_version_then_what_it_says_holds_and_the_log_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    checkpoint.save(tmp_path, KNOWN)
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)

    found = checkpoint.load(tmp_path)

    assert found == Known(-1, "", Desired(pauses=KNOWN.desired.pauses, overrides=KNOWN.desired.overrides))
    assert "2 pauses and 1 limits hold until it says more" in caplog.text


def test_given_what_a_process_left_that_died_while_it_wrote_then_it_goes_and_what_is_being_written_stays(
    tmp_path: Path,
) -> None:
    checkpoint.save(tmp_path, KNOWN)
    for name, age_s in (("control.json.17", 3_600), ("control.json.18", 0)):
        (tmp_path / name).write_bytes(b"{")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)

    assert checkpoint.load(tmp_path) == KNOWN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["control.json", "control.json.18"]


def test_given_nothing_then_nothing_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.load(tmp_path) is None
    assert not caplog.text


def test_given_a_directory_that_cannot_be_written_then_that_is_said_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path / "missing", KNOWN)

    assert "the next start reads the whole control log" in caplog.text


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


PAUSE_FIELDS = json.loads(checkpoint.encode(KNOWN))["pauses"][0]
SET_FIELDS = json.loads(checkpoint.encode(KNOWN))["overrides"][0]


@pytest.mark.parametrize(
    "changed",
    [
        {"v": checkpoint.VERSION + 1},
        {"v": None},
        {"v": True},
        {"offset": -1},
        {"offset": True},
        {"id": ""},
        {"id": 1},
        {"reigns": []},
        {"reigns": {"web-1": {"ledger": "a"}}},
        {"reigns": {"web-1": {"ledger": 1, "since": "n", "before": None, "user": "u"}}},
        {"reigns": {"web-1": {"ledger": "a", "since": "n", "before": 1, "user": "u"}}},
        {"pauses": {}},
        {"pauses": None},
        {"pauses": [1]},
        {"pauses": [{**PAUSE_FIELDS, "id": 1}]},
        {"pauses": [{**PAUSE_FIELDS, "until_s": "soon"}]},
        {"pauses": [{**PAUSE_FIELDS, "until_s": True}]},
        {"pauses": [{**PAUSE_FIELDS, "until_s": 253402300800.0}]},
        {"pauses": [{**PAUSE_FIELDS, "until_s": 1e300}]},
        {"pauses": [{**PAUSE_FIELDS, "target": {"process": "0"}}]},
        {"pauses": [{**PAUSE_FIELDS, "lifted": {"host": "web-1"}}]},
        {"pauses": [{key: value for key, value in PAUSE_FIELDS.items() if key != "lifted"}]},
        {"overrides": [{**SET_FIELDS, "rates": ["much"]}]},
        {"overrides": [{**SET_FIELDS, "rates": []}]},
        {"overrides": [{**SET_FIELDS, "host": None}]},
        {"overrides": [{**SET_FIELDS, "lifted": [["web-1"]]}]},
        {"lifts": "?"},
        {"lifts": "AAAA"},
        {"lifts": packed(b"\1")},
        {"lifts": packed(bytes(FILTER_BYTES + 1))},
        {"lifts": None},
        {"paused": ["a"] * 1_001},
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


def test_given_as_many_pauses_as_can_be_then_they_are_saved_and_loaded_in_little_time(tmp_path: Path) -> None:
    pauses = tuple(replace(PAUSE, id=f"{n:032x}") for n in range(5_000))
    started_s = time.perf_counter()

    checkpoint.save(tmp_path, replace(KNOWN, desired=replace(KNOWN.desired, pauses=pauses)))
    found = checkpoint.load(tmp_path)

    assert found is not None
    assert found.desired.pauses == pauses
    assert time.perf_counter() - started_s < 5
