"""URLs of the inventory: no credentials in them, and no message that repeats one."""

from __future__ import annotations

import re
from urllib.parse import unquote

from qctl.inventory.mistakes import found
from qctl.inventory.model import Endpoint

AMQP_PORT, AMQPS_PORT = 5672, 5671
#: Longest URL accepted.
MAX_URL = 2_048

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)([?#].*)?", re.ASCII | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}))(?::(\d{1,5}))?", re.ASCII)
_PRINTABLE = re.compile(r"[!-~]+", re.ASCII)


def amqp_url(value: object) -> Endpoint:
    """An `amqp://HOST:PORT/VHOST` or `amqps://` address; no path or `/` is the vhost `/`. Raises ValueError."""
    scheme, host, port, path = _split(
        value,
        schemes=("amqp", "amqps"),
        example="amqp://HOST:5672/",
        keys="broker.username and broker.password",
        credentials_in_path=True,
    )
    tls = scheme == "amqps"
    if "/" in path[1:]:
        raise ValueError("a vhost is one path segment; write a / inside its name as %2F")
    vhost = unquote(path[1:]) or "/"
    if len(vhost.encode()) > 255 or not vhost.isprintable():
        raise ValueError("a vhost is at most 255 bytes of printable text")
    return Endpoint(host.strip("[]"), port or (AMQPS_PORT if tls else AMQP_PORT), tls, vhost)


def management_url(value: object) -> str:
    """The management API's `http://HOST:PORT`. Raises ValueError."""
    return _http(value, example="http://HOST:15672", keys="broker.username and broker.password")


def api_url(value: object) -> str:
    """The URL of an API, as written. Raises ValueError."""
    return _http(value, example="https://api.example.com/", keys="the handler's headers, by secret reference")


def _http(value: object, *, example: str, keys: str) -> str:
    _split(value, schemes=("http", "https"), example=example, keys=keys, credentials_in_path=False)
    return str(value)


def _split(
    value: object, *, schemes: tuple[str, str], example: str, keys: str, credentials_in_path: bool
) -> tuple[str, str, int | None, str]:
    expected = f"expected a URL such as {example}"
    if not isinstance(value, str):
        raise ValueError(f"{expected}, found {found(value)}")
    parts = _URL.fullmatch(value)
    authority = _AUTHORITY.fullmatch(parts[2]) if parts else None
    # `amqp://user:pass/word@host/` hides its user part behind a slash: an @ anywhere counts unless the host is sound.
    if "@" in (value if credentials_in_path or not authority else ""):
        raise ValueError(f"no credentials in a URL; give them in {keys}")
    if not parts or parts[1].lower() not in schemes:
        raise ValueError(f"{expected}, beginning with {schemes[0]}:// or {schemes[1]}://")
    if len(value) > MAX_URL or not _PRINTABLE.fullmatch(value):
        raise ValueError(f"{expected}, of at most {MAX_URL} ASCII characters without blanks")
    if not authority or (authority[3] and not 1 <= int(authority[3]) <= 65_535):
        raise ValueError(f"{expected}, with a host and a port between 1 and 65535")
    if parts[4]:
        raise ValueError(f"{expected}, without ? and #")
    return parts[1].lower(), authority[1], int(authority[3]) if authority[3] else None, parts[3]
