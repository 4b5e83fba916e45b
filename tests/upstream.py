"""An API for tests: it does what the path says and remembers every call that it has read whole.

/.../status/503        answers 503             /.../wait/0.5     answers after half a second
/.../retry-after/2     answers 429 with it     /.../spent/2      answers 403 with the headers of a rate limit
/.../redirect          answers 302 to /away    /.../size/1000    answers with so many bytes
/.../say?status=403&x-left=0&body=no             answers with this status, these headers, this body
/.../drip              answers a byte every 100 ms for ever
/.../drip-headers      the same, and never gets to the end of the headers
/.../half              closes the connection in the middle of its answer
/.../half-refused      the same, of a 403 as GitHub's, in chunks
/.../drip-refused      answers it a byte every 100 ms for ever
/.../long-refused      answers 403 as GitHub's with LONG_BYTES, in chunks
/.../late-429/0.5      answers 429 after half a second
/.../digest/200        asks for HTTP Digest, and answers what comes with it like this
anything else          answers 200 and repeats the call as JSON
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

LONG_BYTES = 24 << 20


@dataclass(frozen=True, slots=True)
class Call:
    """One call; `connection` tells connections apart."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: bytes
    connection: tuple[str, int]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_call(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size)
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        params = tuple(parse_qsl(parts.query, keep_blank_values=True))
        call = Call(self.command, parts.path, params, headers, body, self.client_address)
        self.server.calls.append(call)
        *_, verb, argument = ("", *parts.path.split("/"))
        match (parts.path.rpartition("/")[2], verb, argument):
            case ("redirect", _, _):
                self.reply(302, location="/away")
            case ("say", _, _):
                self.say(dict(params))
            case ("drip", _, _):
                self.drip()
            case ("drip-headers", _, _):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nx-drip: ")
                while not self.server.ending.wait(0.1):
                    self.wfile.write(b".")
            case (_, "status", number):
                self.reply(int(number))
            case (_, "wait", seconds):
                self.server.ending.wait(float(seconds))
                self.reply(200)
            case (_, "retry-after", value):
                self.reply(429, retry_after=value)
            case (_, "spent", value):
                self.reply(403, retry_after=value, x_ratelimit_remaining="0")
            case (_, "size", number):
                self.reply(200, b"x" * int(number))
            case (last, _, _):
                self.handle_other(call, last, verb, argument)

    def handle_other(self, call: Call, last: str, verb: str, argument: str) -> None:
        match (last, verb, argument):
            case ("long-refused", _, _):
                self.long()
            case ("half-refused", _, _):
                self.send_response(403)
                self.send_header("x-github-request-id", "A1")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"64\r\nhalf")
                self.close_connection = True
            case ("half", _, _):
                self.send_response(200)
                self.send_header("content-length", "100")
                self.end_headers()
                self.wfile.write(b"half")
                self.close_connection = True
            case ("drip-refused", _, _):
                self.drip(403)
            case (_, "late-429", seconds):
                self.server.ending.wait(float(seconds))
                self.reply(429, retry_after="30")
            case (_, "digest", _) if "authorization" not in call.headers:
                self.reply(401, www_authenticate='Digest realm="r", nonce="n", qop="auth"')
            case (_, "digest", number):
                self.reply(int(number))
            case _:
                said = {
                    "method": call.method,
                    "path": call.path,
                    "params": call.params,
                    "body": call.body.decode("utf-8"),
                }
                self.reply(200, json.dumps(said).encode(), content_type="application/json")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_call  # noqa: N815

    def reply(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        bodiless = status in (204, 304)
        if not bodiless:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if not bodiless and self.command != "HEAD":
            self.wfile.write(body)

    def say(self, said: dict[str, str]) -> None:
        status, answer = int(said.pop("status", "200")), said.pop("body", "{}").encode()
        if said.get("content-encoding") == "gzip":
            answer = gzip.compress(answer)
        self.reply(status, answer, **{name.replace("-", "_"): value for name, value in said.items()})

    def long(self) -> None:
        self.send_response(403)
        self.send_header("x-github-request-id", "A1")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        size = 1 << 16
        for number in range(LONG_BYTES // size):
            self.wfile.write(b"%x\r\n" % size + number.to_bytes(2, "big") * (size // 2) + b"\r\n")
            self.server.sent_bytes += size
        self.wfile.write(b"0\r\n\r\n")

    def drip(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("x-github-request-id", "A1")
        self.send_header("content-length", "100000")
        self.end_headers()
        while not self.server.ending.wait(0.1):
            self.wfile.write(b".")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """The calls are the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[Call] = []
        self.sent_bytes = 0
        self.ending = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is part of the tests."""


class Upstream:
    """A context manager: it listens inside the block."""

    def __init__(self) -> None:
        self._server = _Server()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Upstream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """`http://HOST:PORT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def sent_bytes(self) -> int:
        """Of all long answers so far, what the system has taken."""
        return self._server.sent_bytes

    def calls(self, below: str = "/") -> list[Call]:
        """The calls so far whose path begins like this, in order."""
        return [call for call in tuple(self._server.calls) if call.path.startswith(below)]
