"""What a host knew of the control log when it last read it, in a file, so that the next process goes on from there.

It saves time, and it knows what a log still says whose beginning was cut off since. What cannot be read is as if it
were not there, and of another log the reading notices it.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qctl.broker.message import decode_json, utc
from qctl.control.desired import MAX_LIFTED, MAX_OVERRIDES, MAX_PAUSES, Desired, Override, Pause, Reign
from qctl.control.event import MAX_RATES, NotUnderstood, instant
from qctl.control.following import NOTHING, Known
from qctl.control.seen import FILTER_BYTES, MAX_PAUSES_SEEN, Seen
from qctl.control.target import Scope, Target, pattern

log = logging.getLogger(__name__)

#: In STATE/HOST.
FILE = "control.json"
#: To be changed with what is folded: a log must be read anew by who understands more of it.
VERSION = 2
#: As much as the largest log's hosts, pauses and overrides may take.
MAX_BYTES = 64 << 20
#: A file that is being written is written within this.
WRITTEN_S = 600.0


def load(directory: Path, operators: frozenset[str] | None = None) -> Known | None:
    """What was saved in `directory` (STATE/HOST); None when there is nothing that can be used.

    operators: who is obeyed now. If others were, or another version folded it, the log is to be read from its beginning
    (offset -1), over what still holds: the log that it was commanded by may be gone.
    """
    path = directory / FILE
    _tidy(directory)
    try:
        with path.open("rb") as file:
            known = decode(file.read(MAX_BYTES + 1), operators)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used, reading the control log from its beginning: %s", path, error)
        return None
    if known.offset < 0:
        kept = f"{len(known.desired.pauses)} pauses and {len(known.desired.overrides)} limits hold until it says more"
        log.info("other operators or another version than before: reading the control log from its beginning; %s", kept)
    return known


def _tidy(directory: Path) -> None:
    """Remove what processes left that ended while they wrote."""
    try:
        for path in directory.glob(f"{FILE}.*"):
            if time.time() - path.stat().st_mtime >= WRITTEN_S:
                path.unlink()
    except OSError as error:
        log.debug("what was left beside %s: %s", directory / FILE, error)


def save(directory: Path, known: Known, operators: frozenset[str] | None = None) -> None:
    """Replace what is there as a whole. A power loss may spoil it, which costs a reading from the beginning."""
    path = directory / FILE
    new = path.with_name(f"{FILE}.{os.getpid()}")
    try:
        new.write_bytes(encode(known, operators))
        new.replace(path)
    except OSError as error:
        log.warning("%s cannot be written, the next start reads the whole control log: %s", path, error.strerror)


def encode(known: Known, operators: frozenset[str] | None = None) -> bytes:
    """As it lies in the file."""
    desired = known.desired
    fields = {
        "v": VERSION,
        "operators": None if operators is None else sorted(operators),
        "offset": known.offset,
        "id": known.id,
        "reigns": {host: asdict(reign) for host, reign in desired.reigns.items()},
        "pauses": [_pause_fields(pause) for pause in desired.pauses],
        "overrides": [asdict(override) for override in desired.overrides],
        # Mostly zeros.
        "lifts": base64.b64encode(zlib.compress(desired.seen.lifts, 1)).decode("ascii"),
        "paused": list(desired.seen.pauses),
    }
    return json.dumps(fields).encode()


def decode(data: bytes, operators: frozenset[str] | None = None) -> Known:
    """What `encode` made; if with other operators, or in an older version, what is left of it, at offset -1.

    Raises ValueError for anything else.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    fields = decode_json(data)
    try:
        version = _whole(fields["v"])
        if version > VERSION:
            raise ValueError("it is of a newer version")
        desired = Desired(
            {_text(host): _reign(reign) for host, reign in fields["reigns"].items()},
            tuple(map(_pause, _list(fields["pauses"], MAX_PAUSES))),
            tuple(map(_override, _list(fields["overrides"], MAX_OVERRIDES))),
            _seen(fields["lifts"], fields["paused"]),
        )
        if version < VERSION or fields["operators"] != (None if operators is None else sorted(operators)):
            return Known(NOTHING.offset, NOTHING.id, desired.carried_over(operators))
        return Known(_whole(fields["offset"]), _text(fields["id"]), desired)
    except (KeyError, TypeError, AttributeError, OverflowError, OSError, NotUnderstood, zlib.error) as error:
        raise ValueError("its contents make no sense") from error


def _pause_fields(pause: Pause) -> dict[str, Any]:
    lifted = [target.to_json() for target in pause.lifted]
    return {**_common(pause), "target": pause.target.to_json(), "lifted": lifted}


def _common(entry: Pause | Override) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in ("id", "user", "claimed_by", "at", "reason", "until_s")}


def _reign(fields: Mapping[str, Any]) -> Reign:
    before = fields["before"]
    return Reign(
        ledger=_text(fields["ledger"]),
        since=_text(fields["since"]),
        before=None if before is None else _text(before),
        user=_text(fields["user"]),
    )


def _pause(fields: Mapping[str, Any]) -> Pause:
    lifted = tuple(map(Target.from_json, _list(fields["lifted"], MAX_LIFTED)))
    return Pause(**_checked(fields), target=Target.from_json(fields["target"]), lifted=lifted)


def _override(fields: Mapping[str, Any]) -> Override:
    override = Override(
        **_checked(fields),
        host=pattern(fields["host"], "host"),
        quota=pattern(fields["quota"], "quota"),
        rates=tuple(map(_text, _list(fields["rates"], MAX_RATES))),
        lifted=tuple(
            Scope(pattern(host, "host"), pattern(quota, "quota")) for host, quota in _list(fields["lifted"], MAX_LIFTED)
        ),
    )
    if not override.limits:
        raise ValueError("its contents make no sense")
    return override


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    until_s = fields["until_s"]
    if until_s is not None:
        if type(until_s) not in (int, float) or not math.isfinite(until_s):
            raise ValueError("its contents make no sense")
        instant(utc(until_s), "until")
    optional = {name: fields[name] for name in ("claimed_by", "reason")}
    return {
        **{name: _text(fields[name]) for name in ("id", "user", "at")},
        **{name: None if value is None else _text(value) for name, value in optional.items()},
        "until_s": until_s,
    }


def _seen(lifts: str, pauses: list[Any]) -> Seen:
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(base64.b64decode(lifts, validate=True), FILTER_BYTES)
    if len(found) not in (0, FILTER_BYTES) or not unpacking.eof:
        raise ValueError("its contents make no sense")
    return Seen(found, tuple(map(_text, _list(pauses, MAX_PAUSES_SEEN))))


def _list(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError("its contents make no sense")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("its contents make no sense")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("its contents make no sense")
    return value
