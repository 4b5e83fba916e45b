"""The proxy of the fault matrix does to a connection what it says, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.faults.proxy import Proxy, Way


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=answer, args=(client,), daemon=True).start()

        def answer(client: socket.socket) -> None:
            with client, suppress(OSError):
                while data := client.recv(65_536):
                    client.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def connected(way: Proxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", way.port), timeout=5)
    client.sendall(b"hello")
    assert client.recv(10) == b"hello"
    return client


def test_what_is_held_comes_later_and_whole(echo_port: int) -> None:
    with Proxy.to(echo_port) as way, connected(way) as client:
        way.hold(Way.DOWN)
        client.sendall(b"held")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(10)
        way.release(Way.DOWN)
        client.settimeout(5)
        assert client.recv(10) == b"held"


def test_a_reset_is_one(echo_port: int) -> None:
    with Proxy.to(echo_port) as way, connected(way) as client:
        assert way.reset() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_a_half_close_ends_one_way_alone(echo_port: int) -> None:
    with Proxy.to(echo_port) as way, connected(way) as client:
        way.half_close(Way.DOWN)
        assert client.recv(10) == b""
        client.sendall(b"still there")


def test_a_cut_comes_after_so_many_bytes(echo_port: int) -> None:
    with Proxy.to(echo_port) as way, connected(way) as client:
        way.cut_after(1000, Way.DOWN)
        client.sendall(b"x" * 3000)
        got = b""
        with suppress(ConnectionResetError):
            while data := client.recv(65_536):
                got += data
            pytest.fail("ended, and was not reset")
        assert len(got) <= 1000


def test_delay_and_width_take_their_time(echo_port: int) -> None:
    with Proxy.to(echo_port) as way, connected(way) as client:
        way.delay(0.1, Way.UP)
        way.narrow(10_000, Way.DOWN)
        since_s = time.monotonic()
        client.sendall(b"x" * 2000)
        got = b""
        while len(got) < 2000:
            got += client.recv(65_536)
        assert time.monotonic() - since_s >= 0.3


def test_nobody_is_at_the_port_before_it_listens(echo_port: int) -> None:
    with Proxy(echo_port) as way:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", way.port))
        way.listen()
        connected(way).close()
