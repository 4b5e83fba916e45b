"""A renamed host: what this machine spent under a name that the inventory no longer has."""

from __future__ import annotations

import logging
from collections.abc import Container
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qctl.errors import QctlError
from qctl.quota import Ledger
from qctl.worker.hostlock import is_run

log = logging.getLogger(__name__)

#: Folders of STATE that are looked at.
MAX_FOLDERS = 1_000
LEDGER_FILE = "ledger.sqlite"


@dataclass(frozen=True, slots=True)
class Former:
    """A name that this machine spent under. evidence: which spending that was, to count it once."""

    host: str
    evidence: str


def former_hosts(state: Path, host: str, inventory_hosts: Container[str]) -> tuple[Former, ...]:
    """Hosts that the inventory no longer has, whose ledger here still counts units as spent.

    One that cannot be read may have spent anything. A name whose supervisor lives is not a former one.
    """
    found = []
    folders = (path for path in sorted(state.iterdir()) if path.name != host and path.name not in inventory_hosts)
    for folder in islice((path for path in folders if (path / LEDGER_FILE).is_file()), MAX_FOLDERS):
        if is_run(folder):
            log.warning("host %s runs on this machine and is not in the inventory: is it %s?", folder.name, host)
        elif evidence := _spending(folder):
            found.append(Former(folder.name, evidence))
    return tuple(found)


def _spending(folder: Path) -> str:
    """What tells the last spending of a ledger from earlier ones; "" when nothing of it counts any more."""
    try:
        written_ns = (folder / LEDGER_FILE).stat().st_mtime_ns
        ledger = Ledger.open(folder)
        try:
            now_ns = ledger.clock.now_ns()
            counts = any(units for reading in ledger.readings().values() for units in reading.used(now_ns))
        finally:
            ledger.close()
    except (QctlError, OSError) as error:
        log.warning("what the former host %s spent cannot be read, it may be everything: %s", folder.name, error)
        return f"former {folder.name}"
    return f"former {folder.name} {ledger.ledger_id} {written_ns}" if counts else ""
