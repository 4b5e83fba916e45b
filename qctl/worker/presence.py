"""The supervisor's connection: the host's name on the broker, and what is said in its name.

One connection, made again whenever it is lost. With it the host's exclusive queue is held, whose questions are
answered; over it go the entries in the telemetry log, and the local commands on their way into the control log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable

from qctl.broker.connect import backoff, stay_connected
from qctl.broker.login import login_for
from qctl.broker.message import utc
from qctl.broker.refusals import RECORD, dial
from qctl.broker.session import HEARTBEAT_S, ChannelLost, Connection
from qctl.control.host_answer import HostAnswer, ProcessLook
from qctl.control.reading import HostReading, Reading
from qctl.errors import BrokerUnreachable, HostTaken, QctlError
from qctl.worker.claim import PATIENCE_S, claim
from qctl.worker.notices import Notices
from qctl.worker.pending import Pending
from qctl.worker.plan import Plan
from qctl.worker.telemetry_log import TelemetryLog

log = logging.getLogger(__name__)


class Presence:
    """A host on the broker. For the loop's thread."""

    def __init__(
        self,
        plan: Callable[[], Plan],
        looks: Callable[[], tuple[ProcessLook, ...]],
        readings: Callable[[], tuple[Reading, ...]],
        pending: Pending,
    ) -> None:
        """plan: the present one. looks, readings: how the processes are now, and what they last said of themselves."""
        self._plan = plan
        self._looks = looks
        self._readings = readings
        self._pending = pending
        self._host = plan().host.name
        self._machine = socket.gethostname()
        self._since = utc(time.time())
        self._run = secrets.token_hex(8)
        self._telemetry = TelemetryLog(self._host, self._reading)
        self._notices = Notices(self._host, readings)
        self._connection: Connection | None = None

    async def take(self) -> Connection:
        """The first connection, which holds the host's name.

        Tries for ever while the broker is unreachable. Raises BrokerRefused for a refusal, HostTaken for a taken name.
        """
        for pause_s in backoff():
            connection: Connection | None = None
            try:
                connection = await self._dial(patient=False)
                await self._claim(connection, PATIENCE_S)
                return connection
            except (BrokerUnreachable, ChannelLost) as error:
                hint = getattr(error, "hint", "")
                log.warning("%s; trying again in %.1f s. %s", error, pause_s, hint)
                if connection is not None:
                    await connection.close()  # it may hold the name by now
            await asyncio.sleep(pause_s)
        raise AssertionError("backoff() never ends")

    async def keep(self, connection: Connection, on_taken: Callable[[HostTaken], None]) -> None:
        """Hold the name, and say what is to be said, until cancelled; from the connection of `take` on.

        on_taken: another machine has taken the name while the broker was out of reach.
        """
        try:
            await self._use(connection)
        finally:
            await connection.close()

        async def hold(again: Connection) -> None:
            try:
                await self._claim(again, math.inf)
            except HostTaken as error:
                on_taken(error)
                await asyncio.wait([again.closed])
            else:
                await self._use(again)

        await stay_connected(self._dial, hold, what="supervisor")

    async def log_in_anew(self) -> None:
        """The plan has changed: what the host was told on itself enters the log as the user of its processes."""
        plan = self._plan()
        try:
            login = await asyncio.to_thread(
                login_for, plan.inventory.broker, plan.inventory.path, prefer_environment=False
            )
        except QctlError as error:
            log.warning("the supervisor stays logged in as before: %s", error.message)
            return
        if self._connection is not None and self._connection.username != login.username:
            log.info("logging in as %s", login.username)
            await self._connection.close()  # it is made anew at once

    async def say_goodbye(self) -> None:
        """All processes have ended in order; bounded, and nothing when the broker is away."""
        await self._telemetry.say_goodbye()

    async def _dial(self, *, patient: bool = True) -> Connection:
        plan = self._plan()
        return await dial(
            lambda: login_for(plan.inventory.broker, plan.inventory.path, prefer_environment=False),
            plan.state_directory / plan.host.name / RECORD,
            name=f"qctl {self._host} supervisor",
            properties={"qctl_host": self._host},
            patient=patient,
        )

    async def _claim(self, connection: Connection, patience_s: float) -> None:
        def answer() -> HostAnswer:
            heartbeat_s = max(connection.heartbeat_s, HEARTBEAT_S)
            return HostAnswer(
                self._host, self._machine, os.getpid(), self._since, self._run, heartbeat_s, self._looks()
            )

        await claim(connection, self._host, self._run, answer, patience_s=patience_s)

    async def _use(self, connection: Connection) -> None:
        self._connection = connection
        work = [
            asyncio.create_task(each)
            for each in (
                self._telemetry.keep(connection),
                self._notices.keep(connection),
                self._pending.enter(connection),
            )
        ]
        for task in work:
            task.add_done_callback(_say_why)
        try:
            await asyncio.wait([connection.closed])
        finally:
            for task in work:
                task.cancel()
            await asyncio.wait(work)

    def _reading(self) -> HostReading:
        return HostReading(time.time(), self._host, self._machine, os.getpid(), self._readings())


def _say_why(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("a bug: nothing more is said in the host's name on this connection", exc_info=task.exception())
