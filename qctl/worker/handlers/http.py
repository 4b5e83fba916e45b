"""The `http` handler: the payload says which call to make below one base URL, and the answer says how the task ends."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

from qctl.broker.message import Malformed, short
from qctl.errors import SecretError
from qctl.inventory.model import HttpHandler
from qctl.inventory.secrets import resolve
from qctl.worker.exceptions import Reject, Retry
from qctl.worker.handlers import Answer, Handler
from qctl.worker.task import Task

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
KEYS = ("method", "path", "params", "headers", "json")
#: Rounds of percent-decoding after which a path may not change any more; deeper nesting is an attempt to hide.
MAX_DECODES = 3
MAX_PATH_CHARS = 8_192
CHUNK_BYTES = 64 << 10
#: AMQP has no room for a longer one.
MAX_CONTENT_TYPE_BYTES = 255
_RETRY_STATUS = frozenset({408, 425})

#: Blanks, control characters, backslashes, fragments and lone surrogates, as they stand.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\\#\ud800-\udfff]")
#: The same after decoding, where a blank and a # are part of a name.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: The beginning of an address of its own.
_ELSEWHERE = re.compile(r"//|/?[A-Za-z][A-Za-z0-9+.-]*://")


def checked_path(path: object) -> str:
    """A path that stays below the base URL, without its leading slash. Raises Malformed."""
    if not isinstance(path, str) or len(path) > MAX_PATH_CHARS:
        raise Malformed(f"payload.path must be a string of at most {MAX_PATH_CHARS} characters")
    before_query = path.partition("?")[0]
    if _FORBIDDEN.search(path) or _STRAY_PERCENT.search(before_query):
        raise Malformed(f"payload.path {short(path)!r} has a character that a path may not have")
    # Compatibility forms too: somebody on the way may take a full-width dot for a dot.
    decoded = normalize("NFKC", before_query)
    for _ in range(MAX_DECODES):
        _refuse_escape(decoded, path)
        try:
            further = normalize("NFKC", unquote(decoded, errors="strict"))
        except UnicodeDecodeError:
            raise Malformed(f"payload.path {short(path)!r} is percent-encoded, but not as UTF-8") from None
        if further == decoded:
            return path.removeprefix("/")
        decoded = further
    raise Malformed(f"payload.path {short(path)!r} is percent-encoded too often")


def _refuse_escape(decoded: str, path: str) -> None:
    """Refuse what leaves the base URL, or hides something, in one reading of the path (which has no query)."""
    if _CONTROL.search(decoded):
        raise Malformed(f"payload.path {short(path)!r} has a character that a path may not have")
    # A semicolon starts a parameter: some servers read `..;` as `..`; some drop blanks at the end.
    segments = (segment.partition(";")[0] for segment in decoded.split("/"))
    if _ELSEWHERE.match(decoded) or any("." in segment and not segment.strip(". ") for segment in segments):
        raise Malformed(f"payload.path {short(path)!r} tries to leave base_url")


def _checked_params(params: object) -> dict[str, list[str]]:
    if not isinstance(params, Mapping):
        raise Malformed("payload.params must be an object")
    return {_encodable(name): _texts(name, value) for name, value in params.items() if value is not None}


def _texts(name: str, value: object) -> list[str]:
    """A parameter's values as they go into a query; true and false as JSON writes them."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) or item is None for item in items):
        raise Malformed(f"payload.params.{short(name)} must be a plain value or a list of them")
    return [_encodable(str(item).lower() if isinstance(item, bool) else str(item)) for item in items]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed(f"payload.params: {short(repr(text))} is not valid Unicode") from None
    return text


def _checked_headers(headers: object, allowed: frozenset[str]) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise Malformed("payload.headers must be an object")
    for name, value in headers.items():
        if name.lower() not in allowed:
            raise Malformed(f"payload.headers.{short(name)} is not in the handler's allow_headers")
        if not isinstance(value, str) or not value.isprintable() or not value.isascii() or value != value.strip():
            raise Malformed(f"payload.headers.{short(name)} must be a line of ASCII text without blanks around it")
    return dict(headers)


def load(spec: HttpHandler, consumer: str, timeout_s: float, base: Path) -> Handler:
    """Resolve the headers' secrets. Raises SecretError."""
    fixed = {
        name: resolve(value, what=f"header {name} of consumer {consumer}", base=base)
        for name, value in spec.headers.items()
    }
    for name, value in fixed.items():
        # Checked without showing it: what requests says about a bad header has the whole value in it.
        if not value.isprintable() or not value.isascii() or value != value.strip():
            raise SecretError(
                f"header {name} of consumer {consumer} is not a line of ASCII text without blanks around it",
                hint="Look for a line break or a blank at the end of the secret.",
            )
    allowed = frozenset(name.lower() for name in spec.allow_headers)
    base_url = spec.base_url if spec.base_url.endswith("/") else spec.base_url + "/"

    def run(task: Task) -> Answer | None:
        call = task.payload
        if not isinstance(call, dict):
            raise Malformed(f"the payload must be an object with {', '.join(KEYS)}")
        if unknown := sorted(set(call) - set(KEYS)):
            raise Malformed(f"payload.{short(unknown[0])} is not known; known are {', '.join(KEYS)}")
        method = call.get("method", "POST" if "json" in call else "GET")
        if not isinstance(method, str) or method not in METHODS:
            raise Malformed(f"payload.method must be one of {', '.join(sorted(METHODS))}")
        return _call(
            task,
            method=method,
            url=base_url + checked_path(call.get("path", "")),
            params=_checked_params(call.get("params", {})),
            headers={**_checked_headers(call.get("headers", {}), allowed), **fixed},
            json=call.get("json"),
            timeout_s=timeout_s,
            most_bytes=spec.max_response_bytes,
        )

    return Handler(run=run)


def _call(
    task: Task,
    *,
    method: str,
    url: str,
    params: Mapping[str, list[str]],
    headers: Mapping[str, str],
    json: Any,
    timeout_s: float,
    most_bytes: int,
) -> Answer | None:
    deadline = time.monotonic() + timeout_s
    with task.http.request(
        method, url, params=params, headers=headers, json=json, timeout=timeout_s, stream=True, allow_redirects=False
    ) as response:
        body = bytearray()
        # What has come so far, and not a whole chunk: an answer that drips would never be looked at again.
        while len(body) <= most_bytes and time.monotonic() <= deadline:
            if not (chunk := response.raw.read1(CHUNK_BYTES, decode_content=True)):
                break
            body += chunk
        status = response.status_code
        if status >= 500 or status in _RETRY_STATUS:
            raise Retry(None, f"the upstream answered {status} {short(response.reason or '')}")
        if status >= 300:
            what = "a redirect, which is not followed" if status < 400 else "which no retry will change"
            raise Reject(f"the upstream answered {status} {short(response.reason or '')}, {what}")
        if time.monotonic() > deadline:
            raise Retry(None, f"the answer was not complete after {timeout_s:g} s")
        if len(body) > most_bytes:
            raise Reject(f"the answer is larger than max_response ({most_bytes} bytes)")
        kind = response.headers.get("content-type", "")
        fits = 0 < len(kind.encode()) <= MAX_CONTENT_TYPE_BYTES
        return Answer(bytes(body), kind if fits else "application/octet-stream", status)
