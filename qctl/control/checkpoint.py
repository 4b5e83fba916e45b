"""What a host knew of the control log when it last read it, in a file, so that the next process goes on from there.

Only a saving of time: what cannot be read is as if it were not there, and of another log the reading notices it.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from qctl.broker.message import decode_json
from qctl.control.desired import Desired, Reign
from qctl.control.log import Known

log = logging.getLogger(__name__)

#: In STATE/HOST.
FILE = "control.json"
#: To be changed with what is folded: a log must be read anew by who understands more of it.
VERSION = 1
#: As much as the largest log's hosts may take.
MAX_BYTES = 64 << 20


def load(directory: Path) -> Known | None:
    """What was saved in `directory` (STATE/HOST); None when there is nothing that can be used."""
    path = directory / FILE
    try:
        with path.open("rb") as file:
            return decode(file.read(MAX_BYTES + 1))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used, reading the control log from its beginning: %s", path, error)
        return None


def save(directory: Path, known: Known) -> None:
    """Replace what is there as a whole. A power loss may spoil it, which costs a reading from the beginning."""
    path = directory / FILE
    new = path.with_name(f"{FILE}.{os.getpid()}")
    try:
        new.write_bytes(encode(known))
        new.replace(path)
    except OSError as error:
        log.warning("%s cannot be written, the next start reads the whole control log: %s", path, error.strerror)


def encode(known: Known) -> bytes:
    """As it lies in the file."""
    reigns = {host: asdict(reign) for host, reign in known.desired.reigns.items()}
    return json.dumps({"v": VERSION, "offset": known.offset, "id": known.id, "reigns": reigns}).encode()


def decode(data: bytes) -> Known:
    """What `encode` made. Raises ValueError for anything else."""
    fields = decode_json(data)
    try:
        if len(data) > MAX_BYTES or fields["v"] != VERSION:
            raise ValueError("it is of another version")
        offset, identity, reigns = fields["offset"], fields["id"], fields["reigns"]
        found = {host: Reign(**reign) for host, reign in reigns.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("its contents make no sense") from error
    texts = [identity, *(it for one in found.values() for it in (one.ledger, one.since))]
    before = [one.before for one in found.values() if one.before is not None]
    if type(offset) is not int or offset < 0 or not all(isinstance(it, str) and it for it in (*texts, *before)):
        raise ValueError("its contents make no sense")
    return Known(offset, identity, Desired(found))
