"""`python` handlers: a function, or one for each task type."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qctl.broker.message import Malformed, short
from qctl.errors import HandlerError
from qctl.inventory.model import PythonHandler
from qctl.worker.handlers import Handler
from qctl.worker.task import Task

Function = Callable[[Task], Any]


def _import(reference: str, consumer: str, python_path: tuple[Path, ...]) -> Function:
    module_name, _, name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    # Importing runs the user's code, which may raise anything; all of it means that the handler cannot be used.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = ", ".join(str(path) for path in python_path)
        raise HandlerError(
            f"consumer {consumer}: handler {reference} cannot be imported: {type(error).__name__}: {short(str(error))}",
            hint=f"Looked in {where} (`worker.python_path`) and in the installed packages.",
        ) from error
    if not callable(found):
        raise HandlerError(
            f"consumer {consumer}: handler {reference} is a {type(found).__name__}, not a function",
            hint="Name a function that takes one argument, the task.",
        )
    if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        raise HandlerError(
            f"consumer {consumer}: handler {reference} is a generator, which would never run",
            hint="Leave out its `yield`.",
        )
    function: Function = found
    return function


def _is_async(function: Function) -> bool:
    """True for `async def`, also as the `__call__` of an object."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _by_type(functions: Mapping[str, Function]) -> Function:
    def choose(task: Task) -> Any:
        function = functions.get(task.type)
        if function is None:
            known = ", ".join(sorted(functions))
            raise Malformed(f"unknown task type {short(task.type)!r}; this consumer knows {known}")
        return function(task)

    return choose


def load(spec: PythonHandler, consumer: str, python_path: tuple[Path, ...]) -> Handler:
    """Import what the inventory names. Raises HandlerError."""
    for path in reversed(python_path):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    references = {"": spec.function} if spec.function is not None else dict(spec.by_type)
    functions = {kind: _import(reference, consumer, python_path) for kind, reference in references.items()}
    kinds = {_is_async(function) for function in functions.values()}
    if len(kinds) > 1:
        raise HandlerError(
            f"consumer {consumer}: its handlers mix plain functions and coroutines",
            hint="Make them all `def` or all `async def`, or split the consumer in two.",
        )
    chosen = functions[""] if spec.function is not None else _by_type(functions)
    return Handler(run_async=chosen) if kinds == {True} else _plain(chosen)


def of(function: Function) -> Handler:
    """The handler that a function is."""
    return Handler(run_async=function) if _is_async(function) else _plain(function)


def _plain(function: Function) -> Handler:
    def run(task: Task) -> None:
        result = function(task)
        if inspect.isawaitable(result):
            # Acknowledged, the task would be lost without having run.
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError("the handler is a plain function and returned an awaitable; write it as `async def`")

    return Handler(run=run)
