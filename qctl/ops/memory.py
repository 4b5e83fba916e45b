"""What was commanded, by the control log; how far it was read is kept in a file, so that a long log costs once.

Who also wants to know what happened keeps the newest events beside it: in a folder of their own, since the place in the
log and the events are of one reading or worth nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from qctl.broker.message import decode_json
from qctl.broker.session import Connection
from qctl.control import checkpoint
from qctl.control.desired import Desired
from qctl.control.following import NOTHING, Known
from qctl.control.history import read_to_end
from qctl.inventory.model import Inventory
from qctl.ops.events import Happened

log = logging.getLogger(__name__)

#: The newest events, beside the checkpoint that they belong to.
EVENTS = "events.json"
MAX_EVENTS_BYTES = 8 << 20


async def commanded(inventory: Inventory, connection: Connection) -> Desired:
    """What the control log says now. Raises ControlLogError, ChannelLost, and as topology.ensure does."""
    operators = frozenset(inventory.operators) or None
    directory = _directory(str(connection.address))
    before = checkpoint.load(directory, operators) if directory else None
    known = await read_to_end(connection, operators=operators, known=before)
    if directory and known.offset >= 0 and (before is None or before.offset != known.offset):
        checkpoint.save(directory, known, operators)
    return known.desired


class Remembered:
    """What a console read of a broker's control log, in this user's cache. Blocks; never raises."""

    def __init__(self, inventory: Inventory, connection: Connection) -> None:
        self._operators = frozenset(inventory.operators) or None
        self._directory = _directory(str(connection.address), "console")

    def recall(self) -> tuple[Known, tuple[Happened, ...]]:
        """As it was kept; NOTHING where there is nothing that can be used."""
        known = checkpoint.load(self._directory, self._operators) if self._directory else None
        if known is None or known.offset < 0 or self._directory is None:
            return NOTHING, ()
        try:
            with (self._directory / EVENTS).open("rb") as file:
                fields = decode_json(file.read(MAX_EVENTS_BYTES))
            if (fields["offset"], fields["id"]) != (known.offset, known.id):
                return NOTHING, ()
            events = tuple(Happened(**{**one, "rates": tuple(one["rates"])}) for one in fields["events"])
            return known, events
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.debug("what was kept of the control log's events cannot be used: %s", error)
            return NOTHING, ()

    def keep(self, known: Known, events: Iterable[Happened]) -> None:
        """Replace what is there. What is of two readings, since this was interrupted, is not used."""
        if self._directory is None or known.offset < 0:
            return
        fields = {"offset": known.offset, "id": known.id, "events": [asdict(event) for event in events]}
        path = self._directory / EVENTS
        new = path.with_name(f"{EVENTS}.{os.getpid()}")
        try:
            new.write_bytes(json.dumps(fields).encode())
            new.replace(path)
        except OSError as error:
            log.debug("the control log's events are not kept: %s", error)
            return
        checkpoint.save(self._directory, known, self._operators)


def _directory(address: str, whose: str = "") -> Path | None:
    """Where this user keeps what was read of a broker's log; None where that cannot be, or is not theirs alone."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        home = base if base.is_absolute() else Path.home() / ".cache"
        directory = home / "qctl" / hashlib.sha256(address.encode()).hexdigest()[:16] / whose
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        # Who else may write there could tell us of pauses that nobody gave.
        return directory if status.st_uid == os.geteuid() and not status.st_mode & 0o022 else None
    except (OSError, RuntimeError) as error:
        log.debug("what is read of the control log is not kept: %s", error)
        return None
