"""HTTP servers of bare sockets, which answer as no decent one does."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

#: Nobody waits longer for a client.
PATIENCE_S = 30.0

#: What a server does with a connection whose request it has read: the request's head is given.
Reply = Callable[[socket.socket, str], None]


class BareServer:
    """Listens at `url` while it is a context manager; each connection has a thread of its own, and `serve`."""

    def __init__(self) -> None:
        self.ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def serve(self, client: socket.socket) -> None:
        """What it does with a connection, which is closed after it. A client that hangs up ends it."""
        raise NotImplementedError

    def _accept(self) -> None:
        while not self.ending.is_set():
            with suppress(OSError):
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(PATIENCE_S)
        with client, suppress(OSError):
            self.serve(client)


def head_of(client: socket.socket) -> bytes:
    """All up to the end of a request's head. Raises OSError when the client hangs up before."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (piece := client.recv(65_536)):
            raise ConnectionResetError("hung up in the middle of a request")
        head += piece
    return head


class _Replying(BareServer):
    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    def serve(self, client: socket.socket) -> None:
        self._reply(client, head_of(client).decode())


@contextmanager
def serving(reply: Reply) -> Iterator[str]:
    """A server that lets `reply` answer; its address."""
    with _Replying(reply) as server:
        yield server.url


def answering(document: object, status: str = "200 OK", headers: str = "") -> Reply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def reply(client: socket.socket, _head: str) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        client.sendall(head.encode() + body)

    return reply


def hang(client: socket.socket, _head: str) -> None:
    client.recv(1)


def drip(client: socket.socket, _head: str) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        client.sendall(b" ")
        time.sleep(0.1)
