"""What the tests of the inventory share: files as an operator writes them, and what reading one says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qctl.errors import InventoryError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory

Load = Callable[[str], Inventory]
Mistakes = Callable[[str], tuple[str, ...]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "inventory.yaml"


@pytest.fixture
def read(file: Path) -> Load:
    """Read a text as an inventory."""

    def read(text: str) -> Inventory:
        file.write_text(text, encoding="utf-8")
        return load(file)

    return read


@pytest.fixture
def mistakes(read: Load, file: Path) -> Mistakes:
    """The mistakes of a text, the file's name taken off: `LINE:COLUMN: path: what`."""

    def mistakes(text: str) -> tuple[str, ...]:
        with pytest.raises(InventoryError) as caught:
            read(text)
        prefix = f"{file}:"
        assert all(line.startswith(prefix) for line in caught.value.mistakes)
        return tuple(line.removeprefix(prefix) for line in caught.value.mistakes)

    return mistakes
