"""An API that answers what a test says, below `task.http`: each call is paid for and judged as a real one is."""

from __future__ import annotations

import io
import json as json_
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from urllib3 import HTTPResponse


class UnexpectedCall(AssertionError):
    """The handler made a call that the test says nothing about."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the handler made. `status` is None when it got no answer."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(repr=False)
    status: int | None

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json_.loads(self.body)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]
    error: BaseException | None


@dataclass(slots=True)
class _Limit:
    prefix: str
    left: int
    answer: _Answer


class FakeApi:
    """Answers by method and URL; `calls` has every call, in order, also those of earlier tasks."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.unexpected: list[str] = []
        self._answers: dict[tuple[str, str], list[_Answer]] = {}
        self._limits: list[_Limit] = []
        self._lock = threading.Lock()

    def add(
        self,
        method: str,
        url: str,
        *,
        status: int = 200,
        json: Any = None,
        body: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Answer `method` of `url`; several answers for the same are given in turn, the last one again and again.

        url: without a query it answers any. error: raised instead, for example `requests.ConnectTimeout()`.
        """
        if json is not None:
            body = json_.dumps(json)
            headers = {"content-type": "application/json", **(headers or {})}
        raw = body.encode() if isinstance(body, str) else body
        answer = _Answer(status, raw, dict(headers or {}), error)
        self._answers.setdefault((method.upper(), url), []).append(answer)

    def get(self, url: str, **answer: Any) -> None:
        """`add` for GET."""
        self.add("GET", url, **answer)

    def post(self, url: str, **answer: Any) -> None:
        """`add` for POST."""
        self.add("POST", url, **answer)

    def put(self, url: str, **answer: Any) -> None:
        """`add` for PUT."""
        self.add("PUT", url, **answer)

    def patch(self, url: str, **answer: Any) -> None:
        """`add` for PATCH."""
        self.add("PATCH", url, **answer)

    def delete(self, url: str, **answer: Any) -> None:
        """`add` for DELETE."""
        self.add("DELETE", url, **answer)

    def limit(self, prefix: str, calls: int, *, retry_after: int | None = None) -> None:
        """Serve so many calls of URLs that begin with `prefix`, and answer 429 from then on."""
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        self._limits.append(_Limit(prefix, calls, _Answer(429, b"", headers, None)))

    def answer(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> HTTPResponse:
        """What the API says to a call; for `qctl.testing.run`. Raises UnexpectedCall, and the errors of the test."""
        with self._lock:
            answer = self._choose(method, url)
            status = answer.status if answer is not None and answer.error is None else None
            self.calls.append(Call(method, url, body, headers, status))
            if answer is None:
                known = (
                    ", ".join(f"{known_method} {known_url}" for known_method, known_url in self._answers) or "nothing"
                )
                self.unexpected.append(f"the handler called {method} {url}; the FakeApi answers {known}")
                raise UnexpectedCall(self.unexpected[-1])
        if answer.error is not None:
            raise answer.error
        try:
            reason = HTTPStatus(answer.status).phrase
        except ValueError:
            reason = ""
        return HTTPResponse(
            io.BytesIO(answer.body),
            headers=answer.headers,
            status=answer.status,
            reason=reason,
            preload_content=False,
            request_method=method,
        )

    def _choose(self, method: str, url: str) -> _Answer | None:
        for limit in self._limits:
            if url.startswith(limit.prefix):
                if limit.left <= 0:
                    return limit.answer
                limit.left -= 1
        answers = self._answers.get((method, url)) or self._answers.get((method, url.partition("?")[0]))
        if not answers:
            return None
        return answers.pop(0) if len(answers) > 1 else answers[0]
