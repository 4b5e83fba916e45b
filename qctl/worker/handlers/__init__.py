"""The three kinds of handler: `python`, `http` and `exec`.

Each module turns one form of the inventory into a `Handler`: something that runs a task to its end in the calling
thread, or as a coroutine. What a handler raises is judged in `qctl.worker.outcome`; nothing in here talks to the broker
or to the ledger but through the task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from qctl.inventory.model import Consumer, ExecHandler, HttpHandler, PythonHandler
from qctl.worker.task import Task


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler gives back to the task's `reply_to`."""

    body: bytes
    content_type: str
    status: int


@dataclass(frozen=True, slots=True)
class Handler:
    """One of `run` (in a thread) and `run_async` (on the event loop) is set."""

    run: Callable[[Task], Answer | None] | None = None
    run_async: Callable[[Task], Awaitable[None]] | None = None


def load(consumer: Consumer, *, base: Path, python_path: tuple[Path, ...]) -> Handler:
    """The handler of a consumer, imported and with its secrets resolved.

    base: the inventory's folder. Raises HandlerError when it cannot be imported, SecretError for its headers.
    """
    match consumer.handler:
        case PythonHandler():
            from qctl.worker.handlers import python

            return python.load(consumer.handler, consumer.name, python_path)
        case HttpHandler():
            from qctl.worker.handlers import http

            return http.load(consumer.handler, consumer.name, consumer.timeout_s, base)
        case ExecHandler():
            from qctl.worker.handlers import command

            return command.load(consumer.handler, consumer.name, consumer.timeout_s, base)
