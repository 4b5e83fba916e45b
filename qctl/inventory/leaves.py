"""The single values of the inventory: each check takes what the file has and returns the value.

All raise ValueError; its text says what was expected and is shown to the user as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from keyword import iskeyword
from typing import Any, TypeVar

from qctl import units
from qctl.inventory.mistakes import found, shown
from qctl.inventory.model import PythonHandler, Secret
from qctl.inventory.nearest import nearest
from qctl.inventory.yaml_marks import Plain
from qctl.units import Rate

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
#: Longest text accepted where nothing shorter is said: a path, an argument, a header's value.
MAX_TEXT = 4_096
#: Message types one handler may tell apart, and items of one list.
MAX_ITEMS = 1_000
#: Longest retry delay: a queue's TTL is a 32-bit count of milliseconds on the broker.
MAX_DELAY_S = 30 * 86_400.0

_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_TRUE, _FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})
_SECRET_KINDS = ("env", "file", "command", "value")

E = TypeVar("E", bound=StrEnum)


def whole(low: int, high: int) -> Callable[[object], int]:
    """A whole number between `low` and `high`, unquoted."""

    def check(value: object) -> int:
        if isinstance(value, Plain) and _WHOLE.fullmatch(value) and low <= int(value) <= high:
            return int(value)
        raise ValueError(f"expected a whole number between {low} and {high}, found {found(value)}")

    return check


def flag(value: object) -> bool:
    """`true` or `false`; YAML's `yes`, `no`, `on` and `off` mean what they say."""
    if isinstance(value, Plain) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ValueError(f"expected true or false, found {found(value)}")


def duration(low_s: float, high_s: float) -> Callable[[object], float]:
    """A duration between the bounds; seconds."""
    bounds = f"between {units.format_duration(low_s)} and {units.format_duration(high_s)}"

    def check(value: object) -> float:
        seconds = _parsed(units.parse_duration, value)
        if seconds is None:
            raise ValueError(f"expected a duration such as 250ms, 30s, 15m, 1h or 1d, found {found(value)}")
        if not low_s <= seconds <= high_s:
            raise ValueError(f"expected a duration {bounds}, found {found(value)}")
        return seconds

    return check


def size(low_bytes: int, high_bytes: int) -> Callable[[object], int]:
    """A size between the bounds; bytes."""
    bounds = f"between {units.format_size(low_bytes)} and {units.format_size(high_bytes)}"

    def check(value: object) -> int:
        size_bytes = _parsed(units.parse_size, value)
        if size_bytes is None:
            raise ValueError(f"expected a size such as 64KiB or 1MiB, found {found(value)}")
        if not low_bytes <= size_bytes <= high_bytes:
            raise ValueError(f"expected a size {bounds}, found {found(value)}")
        return size_bytes

    return check


def rate(value: object) -> Rate:
    """`20000/h`, `900/15m`."""
    if not isinstance(value, str) or shown(value) == "'...'":
        raise ValueError(f"expected a rate N/PERIOD such as 20000/h or 900/15m, found {found(value)}")
    return units.parse_rate(value)  # its message says what was expected and repeats the short text


def choice(kind: type[E]) -> Callable[[object], E]:
    """One member of `kind`, by its value."""
    members = {str(member): member for member in kind}

    def check(value: object) -> E:
        if isinstance(value, str) and value in members:
            return members[value]
        raise ValueError(_not_one_of(value, members))

    return check


def one_of(*allowed: str) -> Callable[[object], str]:
    """One of a few words."""

    def check(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return str(value)
        raise ValueError(_not_one_of(value, allowed))

    return check


def version_one(value: object) -> int:
    """The version of the format: 1."""
    if isinstance(value, Plain) and value == "1":
        return 1
    raise ValueError(f"expected 1, the only version of the inventory there is, found {found(value)}")


def text(what: str, *, longest: int = MAX_TEXT) -> Callable[[object], str]:
    """A printable text that is not empty; never repeated in a message."""

    def check(value: object) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"expected {what}, found {found(value)}")
        if len(value) > longest or not value.isprintable():
            raise ValueError(f"expected {what}, at most {longest} printable characters")
        return str(value)

    return check


def argument(value: object) -> str:
    """One argument of a program; may be empty, or span lines."""
    if isinstance(value, str) and "\0" not in value and len(value) <= MAX_TEXT:
        return str(value)
    if value is None:
        return ""
    raise ValueError(f"expected an argument: a text of at most {MAX_TEXT} characters")


def header_name(value: object) -> str:
    """The name of an HTTP header."""
    if isinstance(value, str) and _HEADER.fullmatch(value):
        return str(value)
    raise ValueError("expected the name of an HTTP header, such as Accept-Language")


def queue_name(value: object) -> str:
    """The name of a work queue: like every name, and outside what qctl and the broker keep for themselves."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(not_a_name("queue", value))
    reserved = reserved_queue(value)
    if reserved:
        raise ValueError(reserved)
    return str(value)


def reserved_queue(name: str) -> str:
    """Why `name` cannot be a work queue, or ""."""
    if name.startswith(("qctl.", "amq.")) or name.endswith(".dead"):
        return "a queue's name neither starts with qctl. or amq. nor ends in .dead"
    return ""


def not_a_name(what: str, value: object) -> str:
    """The sentence for a name that does not fit."""
    return (
        f"expected the name of a {what}: a letter or digit, then at most 62 letters, digits, '.', '_' or '-', "
        f"found {found(value)}"
    )


def function(value: object) -> str:
    """`package.module:function`; whether it exists is seen when it is imported."""
    if isinstance(value, str) and len(value) <= MAX_TEXT and value.count(":") == 1:
        module, _, attribute = value.partition(":")
        if all(part.isidentifier() and not iskeyword(part) for part in (*module.split("."), *attribute.split("."))):
            return str(value)
    raise ValueError(f'expected a function as "package.module:function", found {found(value)}')


def python_handler(value: object) -> PythonHandler:
    """A function, or a mapping of message type to function."""
    if isinstance(value, dict):
        if not value:
            raise ValueError('expected at least one message type, as {TYPE: "module:function"}')
        return PythonHandler(None, {_message_type(kind): function(name) for kind, name in value.items()})
    return PythonHandler(function(value), {})


def secret(value: object) -> Secret:
    """A reference `{env: NAME}`, `{file: PATH}`, `{command: [ARGV]}` or a `{value: TEXT}`.

    Neither keys nor values are repeated in the message: either may be the secret itself.
    """
    expected = "expected a secret reference: {env: NAME}, {file: PATH} or {command: [ARGV]}"
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{expected}; exactly one of them")
    kind, reference = next(iter(value.items()))
    if kind not in _SECRET_KINDS:
        near = nearest(kind, _SECRET_KINDS)
        raise ValueError(expected + (f"; did you mean {near}?" if near else ""))
    if kind == "env":
        if not isinstance(reference, str) or not _VARIABLE.fullmatch(reference):
            raise ValueError("expected {env: NAME}, the name of an environment variable")
        return Secret("env", str(reference))
    if kind == "command":
        if not isinstance(reference, list) or not 1 <= len(reference) <= MAX_ITEMS or not reference[0]:
            raise ValueError("expected {command: [ARGV]}, a list: a program and its arguments")
        return Secret("command", tuple(argument(item) for item in reference))
    return Secret("file" if kind == "file" else "value", text(f"{{{kind}: ...}}")(reference))


def secret_or_text(what: str) -> Callable[[object], Secret | str]:
    """A text as it is, or a secret reference."""

    def check(value: object) -> Secret | str:
        return secret(value) if isinstance(value, dict) else text(f"{what} or a secret reference")(value)

    return check


def _message_type(kind: str) -> str:
    return text("a message type", longest=255)(kind)


def _not_one_of(value: object, allowed: Any) -> str:
    near = nearest(value, allowed) if isinstance(value, str) else None
    hint = f"; did you mean {near}?" if near else ""
    return f"expected one of {', '.join(allowed)}, found {found(value)}{hint}"


N = TypeVar("N", int, float)


def _parsed(parse: Callable[[str], N], value: object) -> N | None:
    if not isinstance(value, str):
        return None
    try:
        return parse(value)
    except ValueError:
        return None
