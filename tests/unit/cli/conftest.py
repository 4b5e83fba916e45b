"""Real processes: `qctl` with its exit code and all that it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import commands

Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[3]
QCTL = (sys.executable, "-m", "qctl")

TWO_HOSTS = """\
version: 1
broker: local
quotas: {twitter: [300/15m, 20000/h]}
consumers:
  timeline: {handler: {exec: [cat]}, quota: {twitter: 1}}
  mails: {queue: outbox, handler: {python: "app:mail"}, quota: {}}
groups:
  large: {quotas: {twitter: 100000/h}}
hosts:
  web-1:
  web-2: {group: large, consumers: {timeline: {concurrency: 64}}}
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder, the working directory of `run`."""
    return tmp_path


@pytest.fixture
def environ(work: Path) -> dict[str, str]:
    """An environment without settings of whoever runs the tests."""
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    return {**keep, "HOME": str(work), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


@pytest.fixture
def run(work: Path, environ: dict[str, str]) -> Run:
    """Run `qctl` to its end."""

    def run(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        return commands.run(arguments, cwd=work, env={**environ, **(env or {})}, text=True, **options)

    return run


@pytest.fixture
def inventory(work: Path) -> Path:
    """./inventory.yaml with two hosts."""
    path = work / "inventory.yaml"
    path.write_text(TWO_HOSTS)
    return path
