"""The same API below `task.http_async`: aiohttp's own client, over connections that lead to the test."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import BaseConnector, ClientRequest, ClientTimeout, payload
from aiohttp.client_proto import ResponseHandler

from qctl.testing.api import FakeApi


class FakeConnector(BaseConnector):
    """Answers each request on a connection of its own."""

    def __init__(self, api: FakeApi) -> None:
        super().__init__(force_close=True)
        self._api = api

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Any],
        timeout: ClientTimeout,  # noqa: ASYNC109  (as of aiohttp)
    ) -> ResponseHandler:
        del traces, timeout
        body = await req.body.as_bytes() if isinstance(req.body, payload.Payload) else b""
        status, reason, headers, content = self._api.reply(req.method, str(req.url), body, dict(req.headers))
        named = {"content-length": str(len(content)), **{name.lower(): value for name, value in headers.items()}}
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in named.items()), "", ""]
        head = "\r\n".join(lines).encode()
        protocol = ResponseHandler(asyncio.get_running_loop())
        protocol.connection_made(_Nowhere(protocol))
        protocol.data_received(head + (b"" if req.method == "HEAD" else content))
        return protocol


class _Nowhere(asyncio.Transport):
    """The way out of such a connection: what is sent on it was answered already."""

    def __init__(self, protocol: ResponseHandler) -> None:
        super().__init__()
        self._protocol = protocol
        self._closing = False

    def write(self, data: object) -> None:
        """Nobody reads it."""

    def is_closing(self) -> bool:
        """As of asyncio."""
        return self._closing

    def close(self) -> None:
        """As of asyncio."""
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        """All has been read."""

    def resume_reading(self) -> None:
        """All has been read."""
