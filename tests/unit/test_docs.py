"""The documentation keeps step with the program.

Its inventories load, its commands exist, its links lead somewhere, its defaults are the model's.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from qctl.cli.main import cli
from qctl.errors import InventoryError
from qctl.inventory import form
from qctl.inventory.load import load
from qctl.inventory.model import Inventory

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: What each table of keys in docs/inventory.md describes, by its heading.
FORMS: dict[str, type[form.Form]] = {
    "Top level": form.InventoryForm,
    "broker": form.BrokerForm,
    "broker.tls": form.TlsForm,
    "worker": form.WorkerForm,
    "quotas.NAME": form.QuotaForm,
    "consumers.NAME": form.ConsumerForm,
    "consumers.NAME.retry": form.RetryForm,
    "consumers.NAME.handler": form.HandlerForm,
    "consumers.NAME.handler.http": form.HttpForm,
    "groups.NAME": form.GroupForm,
    "hosts.NAME": form.HostForm,
}


def sample() -> dict[str, Any]:
    """A small inventory with an entry of every kind, each named NAME."""
    return {
        "version": 1,
        "broker": {"amqp": "amqps://rabbit/"},
        "quotas": {"NAME": {"limit": "10/m"}},
        "consumers": {"NAME": {"handler": {"http": {"base_url": "http://api/"}}, "quota": {"NAME": 1}}},
        "groups": {"NAME": {}},
        "hosts": {"NAME": {"group": "NAME"}},
    }


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Row:
    """A key in a table of docs/inventory.md; `default` is None where the cell is words and no value."""

    section: str
    key: str
    default: str | None
    words: str


def blocks(language: str) -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [
            Block(page, text.count("\n", 0, match.start()) + 2, language, match[2])
            for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
            if match[1] == language
        ]
    return found


def rows() -> Iterator[Row]:
    """The rows of every table in docs/inventory.md that has the columns key and default."""
    section, in_table = "", False
    for line in (ROOT / "docs/inventory.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = line.lstrip("#").strip().strip("`")
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[:1] == ["key"]:
            in_table = True
        elif not cells:
            in_table = False
        elif in_table and not cells[0].startswith("---"):
            value = re.fullmatch(r"`(.+)`", cells[2])
            yield Row(section, cells[0], value[1] if value else None, cells[2])


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def said(block: Block) -> list[list[str]]:
    """The words of each call of qctl in a console block, up to the first that is no plain word of a command."""
    calls = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            for part in re.split(r"[|;&>]+", line.removeprefix("$ ").split(" # ")[0]):
                words = shlex.split(part)
                if words[:1] and Path(words[0]).name == "qctl":
                    calls.append(words[1:])
    return calls


INVENTORIES = [block for block in blocks("yaml") if block.text.startswith("version: 1\n")]
CONSOLES = [block for block in blocks("console") if said(block)]
ROWS = list(rows())


def read(tmp_path: Path, text: str) -> Inventory:
    path = tmp_path / "inventory.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


@pytest.mark.parametrize("block", INVENTORIES, ids=str)
def test_an_inventory_of_the_docs_is_good_or_shown_with_all_its_mistakes(block: Block, tmp_path: Path) -> None:
    """Given an inventory in the docs, when it is read, then it is good, or every mistake stands on the same page."""
    try:
        read(tmp_path, block.text)
    except InventoryError as error:
        page = block.page.read_text(encoding="utf-8")
        lines = [line.partition("inventory.yaml:")[2] for line in error.mistakes]
        assert [line for line in lines if f"bad.yaml:{line}\n" not in page] == []


@pytest.mark.parametrize("block", CONSOLES, ids=str)
def test_every_command_of_the_docs_exists(block: Block) -> None:
    """Given a console block, when its calls of qctl are looked up, then each command and each long option exists."""
    for words in said(block):
        command: click.Command = cli
        names = [word for word in words if not word.startswith("-")]
        if words[:1] == ["-i"]:
            names = names[1:]
        context = click.Context(cli)
        for name in names:
            if not isinstance(command, click.Group):
                break
            inner = command.get_command(context, name)
            assert inner is not None, f"there is no command {name!r} in: qctl {' '.join(words)}"
            command = inner
        known = {option for param in command.params for option in param.opts}
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(words)))
        assert named <= known, f"qctl {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Given a page, when its relative links are followed, then each file, and each heading in it, exists."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_the_inventory_page_has_every_key_and_no_other() -> None:
    """Given the tables of keys, when they are compared with the form, then both have the same keys."""
    described = sorted((row.section, row.key) for row in ROWS)

    assert described == sorted((name, key) for name, model in FORMS.items() for key in model.model_fields)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section}.{row.key}")
def test_required_is_said_of_what_is_required(row: Row) -> None:
    """Given a row, when it says `required`, then the form does too."""
    assert (row.words == "required") == FORMS[row.section].model_fields[row.key].is_required()


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.default is not None], ids=lambda row: f"{row.section}.{row.key}"
)
def test_saying_a_default_changes_nothing(row: Row, tmp_path: Path) -> None:
    """Given a default of the page, when an inventory says it, then it means the same as one that does not."""
    silent = sample()
    if row.key == "burst":  # it is refused elsewhere
        silent["quotas"]["NAME"]["window"] = "paced"
    if row.section == "Top level":
        # An empty mapping is the default of a section that nothing refers to.
        silent["consumers"]["NAME"]["quota"] = {}
        silent["hosts"]["NAME"] = {}
        for section in ("quotas", "groups"):
            del silent[section]
    spoken = json.loads(json.dumps(silent))
    place = spoken
    for name in [] if row.section == "Top level" else row.section.split("."):
        place = place.setdefault(name, {})
    assert row.key not in place
    place[row.key] = yaml.safe_load(row.default or "")

    assert read(tmp_path, json.dumps(spoken)) == read(tmp_path, json.dumps(silent))
