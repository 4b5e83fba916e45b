"""A management API that can be told to misbehave: in front of a real one, or with answers of the test's own.

It counts what it is asked.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.bare_http import PATIENCE_S, BareServer, head_of

#: What it does instead of answering.
FAULTS = ("closed", "hang", "drip", "401", "500", "garbage", "redirect")
_SAID = {
    "401": b'HTTP/1.1 401 Unauthorized\r\nContent-Length: 34\r\n\r\n{"reason":"Login failed","more":1}',
    "500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    "garbage": b"\x00\xff\x1b[2Jgarbage\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
}

#: The answer to a path and its query, as the document; an int is a status.
Answer = Callable[[str, dict[str, str]], Any]


class Misbehaving(BareServer):
    """A context manager. fault: one of FAULTS, or "" to answer; asked: paths and queries, so far.

    upstream: `http://HOST:PORT` of the API that is asked; else `answer` makes them up.
    """

    def __init__(self, upstream: str = "", answer: Answer | None = None) -> None:
        super().__init__()
        self.fault = ""
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.times_s: list[float] = []
        self._upstream, self._answer = urlsplit(upstream), answer

    @property
    def paths(self) -> list[str]:
        """What was asked, without the queries."""
        return [path for path, _ in self.asked]

    def serve(self, client: socket.socket) -> None:
        if self.fault == "closed":
            return
        head = head_of(client)
        target = urlsplit(head.split()[1].decode())
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        self.asked.append((target.path.removeprefix("/api"), query))
        self.times_s.append(time.monotonic())
        if self.fault:
            self._misbehave(client)
        elif self._answer is None:
            self._forward(client, head)
        else:
            _reply(client, self._answer(*self.asked[-1]))

    def _misbehave(self, client: socket.socket) -> None:
        match self.fault:
            case "hang":
                self._while("hang", client)
            case "drip":
                client.sendall(b"HTTP/1.1 200 OK\r\n")
                self._while("drip", client)
            case other:
                client.sendall(_SAID[other])

    def _while(self, fault: str, client: socket.socket) -> None:
        """Until it is told to behave, or nobody listens any more."""
        while self.fault == fault and not self.ending.wait(0.1):
            client.sendall(b"X" * (fault == "drip"))

    def _forward(self, client: socket.socket, head: bytes) -> None:
        assert self._upstream.hostname
        assert self._upstream.port
        with socket.create_connection((self._upstream.hostname, self._upstream.port), timeout=PATIENCE_S) as behind:
            behind.sendall(head.replace(b"Connection: keep-alive", b"Connection: close"))
            while piece := behind.recv(65_536):
                client.sendall(piece)


def _reply(client: socket.socket, found: Any) -> None:
    status, document = (found, {}) if isinstance(found, int) else (200, found)
    if isinstance(found, tuple):
        status, document = found
    body = json.dumps(document).encode()
    client.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
