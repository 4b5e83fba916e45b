"""An API that answers what a test says, below `task.http`: each call is paid for and judged as a real one is."""

from __future__ import annotations

import io
import json as json_
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
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
    units: int
    left: int
    retry_after_s: int | None
    reports: str | None
    ends_s: float
    period_s: int

    def headers(self) -> dict[str, str]:
        """What it says of itself in an answer, as its `reports` would."""
        left_s = max(0, round(self.ends_s - time.time()))
        match self.reports:
            case None:
                return {}
            case "ratelimit":
                policy = f'"default";q={self.units};w={self.period_s}'
                said = {"ratelimit": f'"default";r={self.left};t={left_s}', "ratelimit-policy": policy}
            case style:
                maker = "x-rate-limit" if style == "x-rate-limit" else "x-ratelimit"
                said = {
                    f"{maker}-limit": str(self.units),
                    f"{maker}-remaining": str(self.left),
                    f"{maker}-reset": str(round(self.ends_s)),
                }
                if style == "github":
                    said["x-github-request-id"] = "0:0"
        return {"date": formatdate(usegmt=True), **said}


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

    def limit(
        self,
        prefix: str,
        calls: int,
        *,
        retry_after: int | None = None,
        reports: str | None = None,
        spent: int = 0,
        period: int = 3600,
    ) -> None:
        """Serve so many calls of URLs that begin with `prefix`, and answer 429 from then on.

        reports: "x-rate-limit", "ratelimit" or "github": each answer says what is left, in these headers. spent: of the
        calls, those that somebody else has made already. period: seconds from now until the limit resets.
        """
        if reports not in (None, "x-rate-limit", "ratelimit", "github"):
            raise ValueError(f"an API reports by x-rate-limit, ratelimit or github, found {reports!r}")
        left = max(0, calls - spent)
        self._limits.append(_Limit(prefix, calls, left, retry_after, reports, time.time() + period, period))

    def reply(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, str, Mapping[str, str], bytes]:
        """Status, reason, headers and body of what the API says to a call; for `qctl.testing.run`.

        Raises UnexpectedCall, and the errors of the test.
        """
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
        return answer.status, reason, answer.headers, answer.body

    def answer(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> HTTPResponse:
        """The same as urllib3 has it."""
        status, reason, said, content = self.reply(method, url, body, headers)
        return HTTPResponse(
            io.BytesIO(content),
            headers=said,
            status=status,
            reason=reason,
            preload_content=False,
            request_method=method,
        )

    def _choose(self, method: str, url: str) -> _Answer | None:
        said: dict[str, str] = {}
        for limit in self._limits:
            if url.startswith(limit.prefix):
                if limit.left <= 0:
                    after = {} if limit.retry_after_s is None else {"retry-after": str(limit.retry_after_s)}
                    return _Answer(429, b"", {**limit.headers(), **after}, None)
                limit.left -= 1
                said.update(limit.headers())
        answers = self._answers.get((method, url)) or self._answers.get((method, url.partition("?")[0]))
        if not answers:
            return None
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return replace(answer, headers={**said, **answer.headers})
