"""The `http` handler: the payload says which call to make below one base URL, and the answer says how the task ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from qctl.broker.message import Malformed, short
from qctl.inventory.model import HttpHandler
from qctl.inventory.secrets import resolve
from qctl.worker.handlers import Answer, Handler
from qctl.worker.signals import Reject, Retry
from qctl.worker.task import Task

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
KEYS = ("method", "path", "params", "headers", "json")
#: Rounds of percent-decoding after which a path may not change any more; deeper nesting is an attempt to hide.
MAX_DECODES = 3
MAX_PATH_CHARS = 8_192
CHUNK_BYTES = 64 << 10
_RETRY_STATUS = frozenset({408, 425})


def checked_path(path: object) -> str:
    """A path that stays below the base URL, without its leading slash. Raises Malformed."""
    if not isinstance(path, str) or len(path) > MAX_PATH_CHARS:
        raise Malformed(f"payload.path must be a string of at most {MAX_PATH_CHARS} characters")
    decoded = path
    for _ in range(MAX_DECODES):
        _refuse_escape(decoded, path)
        if (further := unquote(decoded)) == decoded:
            return path.removeprefix("/")
        decoded = further
    raise Malformed(f"payload.path {short(path)!r} is percent-encoded too often")


def _refuse_escape(decoded: str, path: str) -> None:
    leaves = f"payload.path {short(path)!r} tries to leave base_url"
    if any(ord(c) <= 0x20 or 0x7F <= ord(c) <= 0x9F for c in decoded) or "\\" in decoded or "#" in decoded:
        raise Malformed(f"payload.path {short(path)!r} has a character that a path may not have")
    try:
        parts = urlsplit(decoded)
    except ValueError:
        raise Malformed(leaves) from None
    if decoded.startswith("//") or parts.netloc or "://" in decoded.partition("?")[0]:
        raise Malformed(leaves)
    # A semicolon starts a parameter: some servers read `..;` as `..`.
    if any(segment.partition(";")[0] in (".", "..") for segment in decoded.partition("?")[0].split("/")):
        raise Malformed(leaves)


def _checked_params(params: object) -> Any:
    if not isinstance(params, Mapping):
        raise Malformed("payload.params must be an object")
    for value in params.values():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in items):
            raise Malformed("payload.params must hold plain values or lists of them")
    return params


def _checked_headers(headers: object, allowed: frozenset[str]) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise Malformed("payload.headers must be an object")
    for name, value in headers.items():
        if name.lower() not in allowed:
            raise Malformed(f"payload.headers.{short(name)} is not in the handler's allow_headers")
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise Malformed(f"payload.headers.{short(name)} must be a line of ASCII text")
    return dict(headers)


def load(spec: HttpHandler, consumer: str, timeout_s: float, base: Path) -> Handler:
    """Resolve the headers' secrets. Raises SecretError."""
    fixed = {
        name: resolve(value, what=f"header {name} of consumer {consumer}", base=base)
        for name, value in spec.headers.items()
    }
    allowed = frozenset(name.lower() for name in spec.allow_headers)
    base_url = spec.base_url if spec.base_url.endswith("/") else spec.base_url + "/"

    def run(task: Task) -> Answer | None:
        call = task.payload
        if not isinstance(call, dict):
            raise Malformed(f"the payload must be an object with {', '.join(KEYS)}")
        if unknown := sorted(set(call) - set(KEYS)):
            raise Malformed(f"payload.{short(unknown[0])} is not known; known are {', '.join(KEYS)}")
        method = call.get("method", "POST" if "json" in call else "GET")
        if method not in METHODS:
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
    params: Any,
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
        for chunk in response.iter_content(CHUNK_BYTES):
            body += chunk
            if len(body) > most_bytes or time.monotonic() > deadline:
                break
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
        return Answer(bytes(body), response.headers.get("content-type", "application/octet-stream"), status)
