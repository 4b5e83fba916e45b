"""Asking before something is done."""

from __future__ import annotations

import io
from pathlib import Path

import click
import pytest

from qctl.cli.confirm import MAX_LISTED, confirm
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from tests.unit.cli.conftest import TWO_HOSTS


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def asked(inventory: Inventory, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    """Ask about one quota, to which somebody types this."""
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n"))
    confirm(inventory, what="set web-1/twitter to 5/h", typed="web-1/twitter", names=["web-1/twitter"])


@pytest.fixture
def development(tmp_path: Path) -> Inventory:
    """An inventory that may be played with."""
    path = tmp_path / "inventory.yaml"
    path.write_text(TWO_HOSTS, encoding="utf-8")
    return load(path)


@pytest.fixture
def production(tmp_path: Path) -> Inventory:
    """One that may not."""
    path = tmp_path / "inventory.yaml"
    path.write_text(TWO_HOSTS + "environment: production\n", encoding="utf-8")
    return load(path)


def test_yes_is_yes_and_anything_else_is_no(development: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(development, monkeypatch, "y")
    for typed in ("", "n"):
        with pytest.raises(click.Abort):
            asked(development, monkeypatch, typed)


def test_in_production_the_target_is_to_be_typed(production: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(production, monkeypatch, "web-1/twitter")
    for typed in ("", "y", "web-1"):
        with pytest.raises(click.Abort):
            asked(production, monkeypatch, typed)


def test_what_it_concerns_is_shown_on_stderr_and_many_are_counted(
    development: Inventory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given more names than a question lists
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    names = [f"web-{number}" for number in range(MAX_LISTED + 3)]

    # when
    confirm(development, what="clear", typed="*", names=names, more="and later ones")

    # then
    told = capsys.readouterr()
    assert told.out == ""
    assert f"  web-{MAX_LISTED - 1}\n  and 3 more\n  and later ones\n" in told.err
