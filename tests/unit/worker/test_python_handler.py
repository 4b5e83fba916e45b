"""What the inventory may name as a handler, and what is said when it cannot be used."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qctl.broker.message import Malformed, Message, Properties
from qctl.errors import HandlerError
from qctl.inventory.model import PythonHandler
from qctl.worker.handlers import Handler, python
from qctl.worker.meter import Meter
from qctl.worker.outbox import Outbox
from qctl.worker.task import Task

MODULE = """
import functools

class Sales:
    class Online:
        @staticmethod
        def sell(task):
            raise LookupError("sold")

class Plain:
    def __call__(self, task):
        raise LookupError("called")

class Coroutine:
    async def __call__(self, task):
        raise LookupError("awaited")

plain, coroutine = Plain(), Coroutine()

def first(task):
    raise LookupError("first")

async def second(task):
    raise LookupError("second")

async def third(task):
    raise LookupError("third")

def generator(task):
    yield

async def async_generator(task):
    yield

def forgetful(task):
    return second(task)

number = 17
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Handler]]:
    """Load a handler out of a module `sales` in a folder of its own."""
    (tmp_path / "sales.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere")
    (tmp_path / "exits.py").write_text("import sys; sys.exit(0)")
    (tmp_path / "typo.py").write_text("def f(task:\n")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def loading(function: str | None = None, **by_type: str) -> Handler:
        return python.load(PythonHandler(function, by_type), "calls", (tmp_path,))

    yield loading
    for name in ("sales", "broken", "exits", "typo"):
        sys.modules.pop(name, None)


def task(kind: str = "") -> Task:
    def no_outbox() -> Outbox:
        raise AssertionError("nothing is enqueued here")

    def no_meter() -> Meter:
        raise AssertionError("nobody pays here")

    message = Message(b"{}", Properties(type=kind))
    return Task(message, host="web-1", consumer="calls", start_meter=no_meter, make_outbox=no_outbox)


def run(handler: Handler, kind: str = "") -> None:
    if handler.run_async is not None:
        asyncio.run(_awaited(handler, kind))
    else:
        assert handler.run is not None
        handler.run(task(kind))


async def _awaited(handler: Handler, kind: str) -> None:
    assert handler.run_async is not None
    await handler.run_async(task(kind))


@pytest.mark.parametrize(
    ("reference", "asynchronous", "said"),
    [
        ("sales:first", False, "first"),
        ("sales:second", True, "second"),
        ("sales:Sales.Online.sell", False, "sold"),
        ("sales:plain", False, "called"),
        ("sales:coroutine", True, "awaited"),
    ],
)
def test_given_a_function_then_it_runs(
    load: Callable[..., Handler], reference: str, asynchronous: bool, said: str
) -> None:
    handler = load(reference)

    assert (handler.run_async is not None) is asynchronous
    with pytest.raises(LookupError, match=said):
        run(handler)


@pytest.mark.parametrize("kinds", [{"a": "sales:first", "b": "sales:plain"}, {"a": "sales:second", "b": "sales:third"}])
def test_given_functions_by_type_then_the_type_chooses_and_an_unknown_one_is_malformed(
    load: Callable[..., Handler], kinds: dict[str, str]
) -> None:
    handler = load(**kinds)

    for kind in kinds:
        with pytest.raises(LookupError):
            run(handler, kind)
    with pytest.raises(Malformed, match="unknown task type 'c'; this consumer knows a, b"):
        run(handler, "c")
    with pytest.raises(Malformed, match="unknown task type ''"):
        run(handler)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("broken:f", "No module named 'no_such_module_anywhere'"),
        ("sales:missing", "has no attribute 'missing'"),
        ("sales:Sales.missing", "has no attribute 'missing'"),
        ("exits:f", "SystemExit"),
        ("typo:f", "SyntaxError"),
        ("sales:number", "is a int, not a function"),
        ("sales:generator", "is a generator"),
        ("sales:async_generator", "is a generator"),
    ],
)
def test_given_what_cannot_be_a_handler_then_one_sentence_names_consumer_reference_and_cause(
    load: Callable[..., Handler], reference: str, words: str
) -> None:
    with pytest.raises(HandlerError) as refused:
        load(reference)

    assert "consumer calls: handler " + reference in refused.value.message
    assert words in refused.value.message
    assert len(refused.value.message.splitlines()) == 1
    assert refused.value.hint


def test_given_plain_functions_and_coroutines_mixed_then_it_is_refused(load: Callable[..., Handler]) -> None:
    with pytest.raises(HandlerError, match="mix plain functions and coroutines"):
        load(a="sales:first", b="sales:second")


def test_given_a_plain_function_that_returns_a_coroutine_then_the_task_fails_instead_of_getting_lost(
    load: Callable[..., Handler],
) -> None:
    with pytest.raises(TypeError, match="async def"):
        run(load("sales:forgetful"))
