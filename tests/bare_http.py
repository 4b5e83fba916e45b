"""An HTTP server of bare sockets, which answers as no decent one does."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: What a server does with a connection whose request it has read: the request's head is given.
Reply = Callable[[socket.socket, str], None]


@contextmanager
def serving(reply: Reply) -> Iterator[str]:
    """A server that lets `reply` answer, one connection at a time; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.02)
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                try:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65_536)
                    reply(connection, head.decode())
                except OSError:
                    pass  # who asked has hung up

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        thread.join()
        listener.close()


def answering(document: object, status: str = "200 OK", headers: str = "") -> Reply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def reply(connection: socket.socket, _head: str) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        connection.sendall(head.encode() + body)

    return reply


def hang(connection: socket.socket, _head: str) -> None:
    connection.recv(1)


def drip(connection: socket.socket, _head: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.1)
