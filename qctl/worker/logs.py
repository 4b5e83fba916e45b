"""The worker's log on stderr: one line a state change, as text or as JSON lines.

Handlers' own logging joins in; while a task runs, its consumer and id are added to every line.
"""

from __future__ import annotations

import contextvars
import json
import logging
import re
import sys
from typing import Any

from qctl.broker.message import utc
from qctl.visible import visible
from qctl.worker.upstream import without_queries

#: `HOST/CONSUMER TASK-ID` of the task that the current thread or coroutine runs.
current_task: contextvars.ContextVar[str] = contextvars.ContextVar("qctl_task", default="")

#: Characters of one log line that are kept; a handler that logs a payload must not fill the disk in one go.
MAX_LINE_CHARS = 8_000
#: Lines a second about single tasks: an upstream that is down must not fill the disk with one line a task.
MAX_TASK_LINES_PER_S = 200
#: Who says them: the filters of a logger are not those of its children.
TASK_LOGGERS = ("qctl.worker.execute", "qctl.worker.judge")


#: What JSON may leave as it is and a terminal obeys, or a reader of lines takes for an end of line.
_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _clean(text: str) -> str:
    shown = visible(text[: MAX_LINE_CHARS + 1])
    return shown if len(shown) <= MAX_LINE_CHARS else shown[:MAX_LINE_CHARS] + "…"


def _message(record: logging.LogRecord) -> str:
    """The record's text; a handler's `log.info("%d", "x")` is logged as it is instead of spilling a traceback."""
    try:
        return record.getMessage()
    # Formatting runs the user's own __str__ and __format__, which may raise anything.
    except Exception:  # noqa: BLE001
        return f"{record.msg!s} (its arguments do not fit)"


class TextFormat(logging.Formatter):
    """`TIME LEVEL ORIGIN [TASK] MESSAGE`, one line each; a traceback follows indented."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin

    def format(self, record: logging.LogRecord) -> str:
        task = current_task.get()
        line = f"{utc(record.created)} {record.levelname:<7} {self.origin} " + (f"[{_clean(task)}] " if task else "")
        line += _clean(_message(record))
        if record.exc_info:
            trace = without_queries(self.formatException(record.exc_info))
            line += "".join(f"\n    {_clean(row)}" for row in trace.splitlines()[-40:])
        return line


class JsonFormat(logging.Formatter):
    """One JSON object a line: at, level, origin, logger, message, and task and traceback where there are any."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": utc(record.created),
            "level": record.levelname.lower(),
            "origin": self.origin,
            "logger": record.name,
            "message": _message(record)[:MAX_LINE_CHARS],
        }
        if task := current_task.get():
            entry["task"] = task
        if record.exc_info:
            entry["traceback"] = without_queries(self.formatException(record.exc_info))[-MAX_LINE_CHARS:]
        line = json.dumps(entry, ensure_ascii=False)
        return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


class Sparse(logging.Filter):
    """Lets through at most `most` lines a second of one logger; the next line says how many it held back."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._second = 0
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        second = int(record.created)
        if second != self._second:
            held_back, self._second, self._seen = max(0, self._seen - self.most), second, 0
            if held_back:
                record.msg, record.args = f"{_message(record)} (and {held_back} lines held back)", None
        self._seen += 1
        return self._seen <= self.most


def configure(origin: str, *, log_format: str, verbosity: int) -> None:
    """Send all logging of this process to stderr. verbosity: -1 warnings only, 0 info, 1 and more debug of qctl."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormat(origin) if log_format == "json" else TextFormat(origin))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if verbosity < 0 else logging.INFO)
    logging.getLogger("qctl").setLevel(logging.DEBUG if verbosity > 0 else logging.NOTSET)
    # pika reports every lost connection as several errors with tracebacks; ours is one line that says more.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    sparse = Sparse(MAX_TASK_LINES_PER_S)
    for name in TASK_LOGGERS:
        logging.getLogger(name).addFilter(sparse)
    logging.captureWarnings(True)
