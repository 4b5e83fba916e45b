"""The law of the house: which room may know which, where each library lives, and who writes to stdout."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

PACKAGE = Path(__file__).parents[2] / "qctl"

#: From the ground up. Imports point down; rooms of one floor do not know each other.
FLOORS = (
    {"errors"},
    {"units", "visible"},
    {"quota", "inventory"},
    {"broker"},
    {"control"},
    {"worker", "ops", "testing"},
    {"tui", "demo"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: Neighbours that may be known all the same.
ALLOWED_NEIGHBOURS = {("testing", "worker")}

#: Where a library may be imported: rooms, or modules of the package.
HOMES = {
    "pika": {"broker"},
    "requests": {"broker/management.py", "worker/http.py"},
    "aiohttp": {"worker/http_async.py", "testing/api_async.py"},
    "http_sf": {"quota/fields.py"},
    "yaml": {"inventory"},
    "pydantic": {"inventory", "tui/recording.py"},
    "textual": {"tui"},
    "click": {"cli"},
}


def violations(package: Path) -> list[str]:
    """Every break of the law in a package, as `MODULE:LINE: what`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, what in _breaks(module, tree):
            found.append(f"{module.as_posix()}:{line}: {what}")
    return found


def _breaks(module: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    room = module.parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the front door hands out names of every room, lazily
    if room not in FLOOR_OF:
        yield 1, f"the room {room} has no floor"
        return
    for line, name in _imports(module, tree):
        top, _, rest = name.partition(".")
        if top == "qctl":
            known = rest.partition(".")[0]
            if known not in FLOOR_OF:
                yield line, f"imports {name}, which is no room: import it from where it lives"
            elif known != room and (room, known) not in ALLOWED_NEIGHBOURS and FLOOR_OF[known] >= FLOOR_OF[room]:
                yield line, f"{room} may not know {known}"
        elif top in HOMES and not {room, module.as_posix()} & HOMES[top]:
            yield line, f"{top} may be imported in {', '.join(sorted(HOMES[top]))} only"
    if room != "cli":
        yield from _stdout(tree)


def _imports(module: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Full names of what a module imports, wherever: inside functions, under TYPE_CHECKING, by import_module."""
    here = ("qctl", *module.parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and _name(node.func).endswith(("import_module", "__import__")) and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                yield node.lineno, target.value


def _stdout(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {keyword.arg for keyword in node.keywords}
            called = _name(node.func)
            if called in ("print", "input") and not (called == "print" and "file" in given):
                yield node.lineno, f"{called}() writes to stdout"
        elif _is_stdout(node):
            yield node.lineno, "stdout belongs to the command line"


def _is_stdout(node: ast.AST) -> TypeGuard[ast.Attribute | ast.ImportFrom]:
    if isinstance(node, ast.ImportFrom):
        return node.module == "sys" and bool({alias.name for alias in node.names} & {"stdout", "__stdout__"})
    return isinstance(node, ast.Attribute) and _name(node) in ("sys.stdout", "sys.__stdout__")


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_the_package_keeps_the_law() -> None:
    assert violations(PACKAGE) == []


def test_every_room_says_what_lives_in_it() -> None:
    # given every package
    silent = [
        package.parent.relative_to(PACKAGE.parent).as_posix()
        for package in PACKAGE.rglob("__init__.py")
        if not ast.get_docstring(ast.parse(package.read_text(encoding="utf-8")))
    ]
    without = [
        folder.relative_to(PACKAGE.parent).as_posix()
        for folder in PACKAGE.rglob("*")
        if folder.is_dir() and list(folder.glob("*.py")) and not (folder / "__init__.py").exists()
    ]

    # then each has an __init__.py with a docstring
    assert silent == []
    assert without == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("units.py", "from qctl.quota import ledger"),
        ("errors.py", "from qctl.units import Rate"),
        ("quota/ledger.py", "from qctl.inventory.model import Quota"),
        ("inventory/load.py", "import qctl.quota.policy"),
        ("broker/session.py", "from qctl.control import event"),
        ("control/log.py", "from qctl import worker"),
        ("worker/process.py", "import qctl.ops.status as status"),
        ("worker/process.py", "from qctl.testing import fake"),
        ("ops/why.py", "def f():\n    from qctl.worker import outcome"),
        ("ops/why.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qctl.cli.render import Table"),
        ("ops/why.py", "from importlib import import_module\nimport_module('qctl.cli.render')"),
        ("demo/scenario.py", "from qctl.tui.app import Console"),
        ("demo/scenario.py", "from ..tui import app"),
        ("demo/scenario.py", "from .. import cli"),
        ("worker/process.py", "from qctl import Task"),
        ("attic/old.py", "x = 1"),
        ("worker/process.py", "import pika"),
        ("worker/process.py", "from pika.adapters import select_connection"),
        ("broker/session.py", "import requests"),
        ("worker/execute.py", "from requests import Session"),
        ("worker/task.py", "import aiohttp"),
        ("quota/upstream.py", "import http_sf"),
        ("ops/status.py", "import yaml"),
        ("demo/scenario.py", "import textual.app"),
        ("ops/status.py", "import click"),
        ("ops/status.py", "print('hello')"),
        ("ops/status.py", "input()"),
        ("tui/app.py", "import sys\nsys.stdout.write('x')"),
        ("tui/app.py", "from sys import stdout"),
        ("worker/process.py", "import sys\nprint('x', file=sys.stdout)"),
    ],
)
def test_a_break_of_the_law_is_found(tmp_path: Path, module: str, source: str) -> None:
    # given a package with one break
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")

    # then exactly that is found, with its place
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("units.py", "from qctl.errors import UsageError"),
        ("quota/ledger.py", "from qctl.quota.window import Window\nfrom qctl.units import Rate"),
        ("broker/session.py", "import pika\nfrom qctl.inventory import model"),
        ("broker/management.py", "import requests"),
        ("worker/http.py", "from requests import Session\nfrom qctl.broker import message"),
        ("worker/http_async.py", "from aiohttp import ClientSession"),
        ("testing/run.py", "from qctl.worker import outcome"),
        ("demo/scenario.py", "import sys\nprint('x', file=sys.stderr)"),
        ("cli/main.py", "import click\nfrom qctl.tui import app\nprint('x')"),
        ("__init__.py", "from qctl.worker import Task"),
    ],
)
def test_what_the_law_allows_is_left_alone(tmp_path: Path, module: str, source: str) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")

    assert violations(tmp_path) == []
