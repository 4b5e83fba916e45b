"""As much of HTTP/1.1 as the API needs: take one whole request off a buffer. Pure; sizes are bounded before parsing."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

#: Request line and headers together; what common servers allow.
MAX_HEAD_BYTES = 16 * 1024
#: The API ignores bodies, so this only bounds what a client may make it read.
MAX_BODY_BYTES = 256 * 1024
#: A query with more fields is refused before it is split.
MAX_QUERY_FIELDS = 64

_HEAD_END = b"\r\n\r\n"


class BadRequestError(Exception):
    """A request that gets `status` and the end of its connection, because where it ends is not known."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the path is decoded and without its query; `task` is the id of the task it was made for, or None."""

    method: str
    path: str
    task: str | None
    keep_alive: bool


def take(buffer: bytearray) -> Request | None:
    """Remove the first whole request from `buffer` and return it; None when more bytes are needed.

    The task's id is the header `X-Task-Id`, else the query field `task`. Raises BadRequestError.
    """
    head_end = buffer.find(_HEAD_END, 0, MAX_HEAD_BYTES)
    if head_end < 0:
        if len(buffer) >= MAX_HEAD_BYTES:
            raise BadRequestError(431, f"the headers are longer than {MAX_HEAD_BYTES} bytes")
        return None
    lines = buffer[:head_end].decode("latin-1").split("\r\n")
    headers = dict(_header(line) for line in lines[1:])
    body_bytes = _body_bytes(headers)
    request = _request(lines[0], headers)
    end = head_end + len(_HEAD_END) + body_bytes
    if len(buffer) < end:
        return None
    del buffer[:end]
    return request


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name or name != name.strip():
        raise BadRequestError(400, "a header line is not `name: value`")
    return name.lower(), value.strip()


def _body_bytes(headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise BadRequestError(411, "a body needs a Content-Length")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise BadRequestError(400, "the Content-Length is not a number")
    if len(text) > 12 or int(text) > MAX_BODY_BYTES:
        raise BadRequestError(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    return int(text)


def _request(line: str, headers: dict[str, str]) -> Request:
    parts = line.split(" ")
    if len(parts) != 3 or not parts[0].isalpha() or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequestError(400, "the request line is not `METHOD TARGET HTTP/1.1`")
    method, target, version = parts
    path, _, query = target.partition("?")
    task = headers.get("x-task-id")
    if task is None and query:
        try:
            task = dict(parse_qsl(query, max_num_fields=MAX_QUERY_FIELDS)).get("task")
        except ValueError:
            raise BadRequestError(400, f"the query has more than {MAX_QUERY_FIELDS} fields") from None
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
    return Request(method, unquote(path), task, keep_alive)
