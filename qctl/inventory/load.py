"""Find the inventory's file and read it: text in, `Inventory` out, or every mistake in one pass."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Set
from pathlib import Path

from qctl.errors import InventoryError
from qctl.inventory.mistakes import MAX_MISTAKES, Keys, Mistake, found, in_order
from qctl.inventory.model import Inventory

#: Largest inventory read.
MAX_FILE_BYTES = 1 << 20
SYSTEM_PATH = Path("/etc/qctl/inventory.yaml")


def find(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the inventory is: `explicit` (-i), $QCTL_INVENTORY, ./inventory.yaml, ~/.config/qctl/, /etc/qctl/.

    The first two are taken as they are; of the others the first that exists. Raises InventoryError when none does.
    """
    if explicit is not None:
        return explicit
    if environ.get("QCTL_INVENTORY"):
        return Path(environ["QCTL_INVENTORY"])
    places = [Path("inventory.yaml")]
    if environ.get("HOME"):
        places.append(Path(environ["HOME"]) / ".config/qctl/inventory.yaml")
    places.append(SYSTEM_PATH)
    for place in places:
        if place.exists():
            return place
    looked = ", ".join("./inventory.yaml" if place == places[0] else str(place) for place in places)
    raise InventoryError(
        f"no inventory found: $QCTL_INVENTORY is not set, and there is no {looked}",
        hint="Write one with qctl init, or name one with -i FILE.",
    )


def load(path: Path) -> Inventory:
    """Read, check and merge the inventory at `path`. Raises InventoryError with all mistakes, resolves no secret."""
    inventory, mistakes = read_text(_text(path), path)
    if inventory is None or mistakes:
        raise _error(path, mistakes)
    return inventory


def read_text(text: str, path: Path) -> tuple[Inventory | None, list[Mistake]]:
    """The inventory in `text` and its mistakes in order of position; `path` says what relative paths refer to."""
    from qctl.inventory import reading, resolve, rules, yaml_marks

    document = yaml_marks.parse(text)
    root, mistakes = document.root, document.mistakes
    if root is None or root.entries is None:
        if not mistakes:
            there = found(root.plain_data() if root is not None else None)
            expected = "expected a mapping with version, broker, consumers and hosts"
            mistakes = [Mistake(1, 1, (), f"{expected}, found {there}")]
        return None, in_order(mistakes)
    form, of_form = reading.read(root)
    mistakes = mistakes + [mistake for mistake in of_form if not _under(mistake.keys, document.unread)]
    if form is None:
        return None, in_order(mistakes)
    inventory, entries = resolve.resolve(form, path.absolute())
    # A stand-in for something wrong must not be reported for what it says itself.
    wrong = {mistake.keys for mistake in of_form} | document.unread
    mistakes += [m for m in rules.findings(form, entries, root) if not _under(m.keys, wrong)]
    return inventory, in_order(mistakes)


def _under(keys: Keys, wrong: Set[Keys]) -> bool:
    return any(keys[:length] in wrong for length in range(1, len(keys) + 1))


def _error(path: Path, mistakes: list[Mistake]) -> InventoryError:
    count = len(mistakes)
    said = f"more than {MAX_MISTAKES:,} mistakes" if count > MAX_MISTAKES else f"{count} mistake{'s' * (count != 1)}"
    lines = tuple(mistake.render(path) for mistake in mistakes[:MAX_MISTAKES])
    return InventoryError(
        f"{path} has {said}",
        mistakes=lines,
        hint=f"Correct {'it' if count == 1 else 'them'}, then run: qctl inventory check",
    )


def _text(path: Path) -> str:
    data = _bytes(path)
    if len(data) > MAX_FILE_BYTES:
        raise InventoryError(f"{path} is larger than 1 MiB", hint="An inventory is smaller; is this the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InventoryError(
            f"{path}:{line}: the file is not UTF-8 text", hint="Save it as UTF-8, or name another file with -i."
        ) from None
    if not text.strip():
        raise InventoryError(f"{path} is empty", hint="Write a starter with qctl init, or name another file with -i.")
    return text


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise InventoryError(f"{path} is not a file", hint="Name the inventory's file with -i FILE.")
            return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise InventoryError(
            f"there is no inventory {path}", hint="Write one with qctl init, or name one with -i FILE."
        ) from None
    except IsADirectoryError:
        raise InventoryError(
            f"{path} is a directory, not a file", hint=f"Name the file in it: -i {path / 'inventory.yaml'}"
        ) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror or "it cannot be opened") if isinstance(error, OSError) else "not a path"
        raise InventoryError(
            f"cannot read the inventory {path}: {reason.lower()}", hint="Check the path and its permissions."
        ) from None
