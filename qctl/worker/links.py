"""A process's two connections to the broker: one that consumes and hears what is commanded, one that publishes.

Nothing is consumed before the control log was read to a proven end, nor any longer than it is followed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from qctl.broker.connect import stay_connected
from qctl.broker.login import login_for
from qctl.broker.publisher import Publisher
from qctl.broker.refusals import RECORD, dial
from qctl.broker.session import ChannelLost, Connection
from qctl.control.log import Live
from qctl.errors import QctlError
from qctl.worker.consumer import LiveConsumer
from qctl.worker.courier import Courier
from qctl.worker.identity import Identity
from qctl.worker.obey import Obeying
from qctl.worker.plan import Plan
from qctl.worker.readings import Telemetry

log = logging.getLogger(__name__)

#: How often it is looked whether the ledger was replaced, and how far the control log was read.
LOOK_S = 0.5
HELLO_AGAIN_S = 5.0
#: Both connections are usually there at once; after so long it is news that one is missing.
SLOW_PUBLISHER_S = 2.0


class Links:
    """The two connections of one process, each kept by a task that never ends by itself. For the loop's thread."""

    def __init__(
        self,
        plan: Plan,
        index: int,
        *,
        consumers: Mapping[str, LiveConsumer],
        identity: Identity,
        obeying: Obeying,
        courier: Courier,
        telemetry: Telemetry,
        report: Callable[..., Any],
    ) -> None:
        """report(event="link", ...): tells the supervisor, from any thread; it is written when that returns.

        Told are the `state` of the connection that consumes, and the broker's `user`, under which answers go out.
        """
        self.publisher: Publisher | None = None
        self._plan = plan
        self._index = index
        self._consumers = consumers
        self._identity = identity
        self._obeying = obeying
        self._courier = courier
        self._telemetry = telemetry
        self._report = report
        self._live: Live | None = None
        self._publishing = asyncio.Event()
        self._username = ""
        self._hint = ""
        self._dialing = asyncio.Lock()  # a password that is wrong is tried once a process, not by both connections

    def start(self) -> list[asyncio.Task[None]]:
        """Connect, and stay so; a task ends with the error that cannot be mended."""
        loop = asyncio.get_running_loop()
        consuming = stay_connected(lambda: self.dial("consume"), self._consume, what="consuming")
        publishing = stay_connected(
            lambda: self.dial("publish"), self._publish, what="publishing", on_lost=self._lost_publisher
        )
        return [loop.create_task(consuming), loop.create_task(publishing)]

    async def dial(self, purpose: str) -> Connection:
        """Connect, to "consume" or to "publish"."""
        plan, host = self._plan, self._plan.host.name
        async with self._dialing:
            connection = await dial(
                lambda: login_for(plan.inventory.broker, plan.inventory.path, prefer_environment=False),
                plan.state_directory / host / RECORD,
                name=f"qctl {host}/{self._index} {purpose}",
                properties={"qctl_host": host, "qctl_index": str(self._index)},
            )
        if purpose == "publish":
            self._username = connection.username
        return connection

    # The connection that consumes

    async def _consume(self, connection: Connection) -> None:
        # Written before the hello goes out: whoever is told that this process is not connected may rely on it that
        # what he commanded before he asked stands before that hello.
        await asyncio.to_thread(self._report, event="link", state="connected")
        serving: asyncio.Future[Any] | None = None
        try:
            self._live = await self.introduce(connection, self._say_down)
            self._hint = ""
            serving = asyncio.gather(*(one.serve(connection) for one in self._consumers.values()))
            await self._follow(connection, serving)
        except QctlError as error:
            self._say_down(error.message)
            self._say_hint(error)
            raise
        finally:
            self._stop_hearing("")
            await asyncio.shield(connection.close())  # not before its last settlements have arrived
            if serving is not None:
                await asyncio.wait({serving})
            await asyncio.to_thread(self._report, event="link", state="disconnected")

    async def _follow(self, connection: Connection, serving: asyncio.Future[Any]) -> None:
        """Return when the connection is lost. Raises what ended the control log when that is lost alone."""
        again = asyncio.get_running_loop().create_task(self._stay_known(connection))
        try:
            while not serving.done():
                live = self._live
                assert live is not None
                await asyncio.wait({serving, live.lost}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                if live is not self._live:
                    continue
                lost = live.lost.done() and connection.is_open
                if lost:
                    self._stop_hearing(str(live.lost.result()))
                await self._identity.keep(live)
                if lost:
                    raise live.lost.result()
            serving.result()
        finally:
            again.cancel()

    async def _stay_known(self, connection: Connection) -> None:
        """Say hello again when the ledger was replaced: its evidence is worth the least waiting while it is fresh."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._identity.outdated or self.publisher is None:
                continue
            try:
                later = await self.introduce(connection, lambda why: log.info("hello with the new ledger: %s", why))
            except (QctlError, ChannelLost) as error:
                log.warning("hello with the new ledger, trying again in %g s: %s", HELLO_AGAIN_S, error)
                await asyncio.sleep(HELLO_AGAIN_S)
                continue
            before, self._live = self._live, later
            if before is not None:
                await before.close()

    async def introduce(self, connection: Connection, on_delay: Callable[[str], None]) -> Live:
        """Have it known, and applied, what holds; the hello goes out on the other connection."""
        publishing: asyncio.Future[Any] = asyncio.ensure_future(self._publishing.wait())
        either: list[asyncio.Future[Any]] = [publishing, connection.closed]
        done, _ = await asyncio.wait(either, timeout=SLOW_PUBLISHER_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            on_delay("waiting for the connection to publish on")
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        publishing.cancel()
        if not connection.is_open:
            raise connection.closed.result()
        if self.publisher is None:
            raise ChannelLost(0, "the connection to publish on was lost again")
        live = await self._identity.introduce(
            connection, self.publisher, self._username, on_delay=on_delay, on_heard=self._obeying.hear
        )
        try:
            await self._obeying.begin(live.known)
        except BaseException:
            await live.close()
            raise
        return live

    def _stop_hearing(self, why: str) -> None:
        self._obeying.cut_off()
        for live in self._consumers.values():
            live.stop_hearing(why or live.why_down)

    def _say_down(self, why: str) -> None:
        for live in self._consumers.values():
            live.say_down(why)

    def _say_hint(self, error: QctlError) -> None:
        """Once, until it is another one: it is tried again and again."""
        if error.hint and error.hint != self._hint:
            log.warning("%s. %s", error.message, error.hint)
        self._hint = error.hint

    # The connection that publishes

    async def _publish(self, connection: Connection) -> None:
        # First what opens channels: that is no longer possible once the broker is in alarm and something was published.
        await self._telemetry.attach(connection)
        # Before the first answer goes out: it counts only under the user that the supervisor names.
        await asyncio.to_thread(self._report, event="link", user=connection.username)
        await self._courier.open(connection)
        self.publisher = await Publisher.open(connection)
        again = asyncio.get_running_loop().create_task(self._courier.keep_open(connection))
        self._publishing.set()
        closed = self.publisher.channel.closed
        try:
            # A channel can be lost alone: an exchange deleted, a permission taken, a message too large.
            await asyncio.wait([connection.closed, closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            again.cancel()
        if closed.done():
            raise closed.result()

    def _lost_publisher(self, _why: str) -> None:
        self.publisher = None
        self._publishing.clear()
        self._courier.close()
        self._telemetry.detach()
