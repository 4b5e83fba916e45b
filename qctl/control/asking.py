"""Giving commands to the control log, and gathering what proves that they are obeyed.

Asked are the processes, by the command itself, and their supervisors, each through its host's queue and only after the
command was confirmed: what they say then of a process is of a moment in which the command stood in the log. Where no
supervisor is, the end of the telemetry log and the broker's list of connections tell whether anybody can be alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from qctl.broker import topology
from qctl.broker.message import Outgoing, Properties, text
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Channel, ChannelLost, Connection, moved_or
from qctl.control import answer, giving, host_answer
from qctl.control.event import Command
from qctl.control.host_answer import host_queue
from qctl.control.target import Target
from qctl.control.verdict import Expected, Heard, HostEvidence, Supervisor
from qctl.errors import BrokerUnreachable, QctlError

if TYPE_CHECKING:
    from qctl.control.reading import HostReading
    from qctl.control.telemetry_log import Tail

log = logging.getLogger(__name__)

#: Supervisors are asked again so often while something is unknown: a process may have ended meanwhile.
ASK_AGAIN_S = 1.0
#: Answers that the broker keeps for us, questions that are remembered, and processes and hosts that are kept in mind.
MAX_QUEUED = 20_000
MAX_QUESTIONS = 100_000
MAX_PROCESSES = 20_000
MAX_HOSTS = 10_000

#: The hosts of which the broker lists a connection.
Listed: TypeAlias = Callable[[], Awaitable[frozenset[str]]]


class Asking:
    """One run of giving and gathering, over one connection. Made by `asking`.

    evidence: by host, what is known at this moment. foreign: subscriptions of hosts that only telemetry has told of.
    notes: what could not be asked, a sentence each. is_sent: something was sent that may be obeyed, confirmed or not.
    """

    def __init__(self, connection: Connection, channel: Channel, queue: str, publisher: Publisher) -> None:
        self.connection = connection
        self.evidence: dict[str, HostEvidence] = {}
        self.foreign: tuple[Expected, ...] = ()
        self.notes: list[str] = []
        self.confirmed: list[Command] = []
        self.confirmed_at_s: float | None = None
        self._channel = channel
        self._queue = queue
        self._publisher = publisher
        self._questions: Publisher | None = None
        self.is_sent = False
        self._asked: dict[str, str] = {}
        self._answers: dict[str, dict[tuple[int, int], tuple[answer.Answer, ...]]] = {}
        self._supervisors: dict[str, str] = {}
        self._commands: dict[str, Command] = {}
        self._tail: Tail | None = None
        self._listed: frozenset[str] | None = None
        self._introduced: frozenset[str] | None = None
        self._moved = asyncio.Event()
        self._is_odd_told = False

    async def give(self, commands: Sequence[Command]) -> None:
        """Publish the commands and wait until all are confirmed; `confirmed` is true at any moment.

        Raises BrokerBlocked under an alarm, BrokerRefused, BrokerUnreachable when the broker is lost before, QctlError
        when no log takes them. Each says what is true of the commands.
        """
        assert len(commands) <= giving.MAX_COMMANDS
        await giving.check_alarm(self.connection)
        self._commands = {command.id: command for command in commands}
        fates: dict[str, Published] = {}
        username = self.connection.username
        for command in commands:
            self.is_sent = True
            try:
                self._publisher.send(
                    giving.outgoing(command, username, self._queue), partial(self._on_fate, fates, command)
                )
            except ChannelLost:
                break
        closed, sent_s, blocked_s = self._publisher.channel.closed, time.monotonic(), 0.0
        while len(fates) < len(commands) and not closed.done():
            await self._wait(closed, timeout_s=giving.LOOK_S)
            blocked_s = blocked_s + giving.LOOK_S if self.connection.blocked else 0.0
            if blocked_s > giving.ALARM_S or time.monotonic() - sent_s > giving.CONFIRM_S:
                break
        if len(fates) < len(commands) or len(self.confirmed) < len(commands):
            raise giving.not_given(self._publisher, len(self.confirmed), len(commands), set(fates.values()))

    async def gather(
        self,
        hosts: Collection[str],
        is_known: Callable[[], bool],
        *,
        timeout_s: float,
        listed: Listed | None = None,
        anywhere: bool = False,
    ) -> None:
        """Gather evidence until `is_known()` is true, asked whenever something came, for at most `timeout_s`.

        hosts: of the inventory, that the commands concern; anywhere: hosts that are not in it may be concerned too.
        Raises BrokerUnreachable when the broker is lost.
        """
        deadline_s = time.monotonic() + timeout_s
        for host in hosts:
            self.evidence.setdefault(host, HostEvidence())
        listing: asyncio.Future[None] | None = None
        introduced: asyncio.Future[None] | None = None
        tail = asyncio.ensure_future(self._read_tail()) if anywhere else None
        ask_s = 0.0
        try:
            while (left_s := deadline_s - time.monotonic()) > 0:
                # Silence says that a host is down only together with the list of connections, where that can be had.
                unlisted = listed is not None and self._is_silence_anywhere() and not (listing and listing.done())
                if is_known() and not unlisted and (self._tail or not anywhere):
                    break
                if time.monotonic() >= ask_s:
                    ask_s = time.monotonic() + ASK_AGAIN_S
                    self._ask([host for host, found in self.evidence.items() if not _all_answer(found)])
                if self._is_nobody_there():
                    tail = tail or asyncio.ensure_future(self._read_tail())
                    listing = listing or (asyncio.ensure_future(self._list(listed)) if listed else None)
                if self._is_silence_anywhere() and (listed is None or (listing and listing.done())):
                    introduced = introduced or asyncio.ensure_future(self._read_hellos())
                await self._wait(self._channel.closed, timeout_s=min(left_s, max(0.0, ask_s - time.monotonic())))
                if not self.connection.is_open or not self._channel.is_open:
                    raise self._lost()
        finally:
            for task in (listing, tail, introduced):
                if task is not None:
                    task.cancel()

    def ask_again(self) -> None:
        """Ask all supervisors once more: about processes that have answered and may have ended since."""
        self._ask(self.evidence)

    # What is sent

    def _on_fate(self, fates: dict[str, Published], command: Command, fate: Published) -> None:
        fates[command.id] = fate
        if fate is Published.CONFIRMED:
            self.confirmed.append(command)
            self.confirmed_at_s = time.time()
        self._moved.set()

    def _lost(self) -> BrokerUnreachable:
        closed = self._channel.closed
        why = f": {closed.result()}" if closed.done() else ""
        return BrokerUnreachable(
            f"the command was confirmed and holds, but the broker was lost before all had answered{why}",
            hint="`qctl status` shows the states once it is back; giving the command again does no harm.",
        )

    def _ask(self, hosts: Iterable[str]) -> None:
        """Ask the supervisors of these hosts for their processes."""
        if self._questions is None or not self._questions.channel.is_open:
            return
        for host in hosts:
            if not self._questions.room:
                break  # the rest next time
            if len(self._asked) >= MAX_QUESTIONS:
                self._asked.clear()  # they are old
            question = secrets.token_hex(16)
            self._asked[question] = host
            properties = Properties(message_id=question, correlation_id=question, reply_to=self._queue)
            try:
                self._questions.send(
                    Outgoing("", host_queue(host), b"", properties), partial(self._on_question_fate, host)
                )
            except (ChannelLost, ValueError) as error:
                log.debug("host=%s cannot be asked: %s", host, error)

    def _on_question_fate(self, host: str, fate: Published) -> None:
        lost = self._questions.why_lost if self._questions else None
        if fate is Published.UNROUTABLE:
            self._change(host, supervisor=Supervisor.NOBODY, looks=())
        elif fate is Published.LOST and lost is not None and lost.code == topology.ACCESS_REFUSED:
            self._note("the supervisors cannot be asked: this user may not publish to the default exchange")

    # What comes

    def _deliver(self, _channel: object, method: Any, properties: Properties, body: bytes) -> None:
        if text(method.exchange) == topology.REPLIES:
            self._on_answer(text(properties.user_id), body)
        elif (found := host_answer.parse_answer(body)) is not None:
            self._on_supervisor(text(properties.correlation_id), text(properties.user_id), found)

    def _on_supervisor(self, question: str, user: str, found: host_answer.HostAnswer) -> None:
        """Only who holds the host's exclusive queue has seen the question; it names the users of its processes."""
        if self._asked.get(question) != found.host or not user:
            self._say_odd("not by who was asked")
            return
        self._supervisors[found.host] = user
        heartbeat_s = float(found.heartbeat_s)
        self._change(found.host, supervisor=Supervisor.ANSWERS, looks=found.processes, heartbeat_s=heartbeat_s)
        self._sift(found.host)

    def _on_answer(self, user: str, body: bytes) -> None:
        try:
            if not user:
                raise ValueError("nobody's: it has no user_id")
            self.add(replace(answer.parse_answer(body), user=user))
        except ValueError as error:
            self._say_odd(str(error))

    def _say_odd(self, why: str) -> None:
        if not self._is_odd_told:
            log.warning("an answer is ignored: %s", why)
        self._is_odd_told = True

    def _sift(self, host: str) -> None:
        """Believe the answers of a host's processes, and only theirs, once its supervisor has told who they are."""
        given, found = self._answers.get(host, {}), self.evidence.get(host, HostEvidence())
        if (supervisor := self._supervisors.get(host)) is None:
            self._change(host, answers=dict(given))
        else:
            named = {(look.index, look.pid): look.user for look in found.looks}
            believed, strangers = answer.sift(given, lambda process: named.get(process) or supervisor)
            self._change(host, answers=believed, strangers=strangers)

    def add(self, found: answer.Answer) -> None:
        """Take in the answer of a process."""
        command = self._commands.get(found.id)
        if command is None or not command.target.might_match_host(found.host):
            return
        is_new = found.host not in self.evidence
        if is_new and len(self.evidence) >= MAX_HOSTS:
            return
        known = self._answers.setdefault(found.host, {})
        key = (found.index, found.pid)
        earlier = known.get(key, ())
        if len(known) >= MAX_PROCESSES or any((one.id, one.user) == (found.id, found.user) for one in earlier):
            return
        known[key] = (*earlier, found)
        self._sift(found.host)
        if is_new:
            self._ask([found.host])

    def _change(self, host: str, **fields: Any) -> None:
        if host in self.evidence or len(self.evidence) < MAX_HOSTS:
            self.evidence[host] = replace(self.evidence.get(host, HostEvidence()), **fields)
            self._moved.set()

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    # What is looked up

    def _is_nobody_there(self) -> bool:
        return any(found.supervisor is Supervisor.NOBODY for found in self.evidence.values())

    def _is_silence_anywhere(self) -> bool:
        absent = (found for found in self.evidence.values() if found.supervisor is Supervisor.NOBODY)
        return any(found.heard is Heard.SILENT and not found.answers for found in absent)

    async def _read_tail(self) -> None:
        """Read what the hosts have written to the telemetry log in the time in which a living one writes."""
        # Most commands end without it, and an operator waits for every import.
        from qctl.control.reading import HostReading
        from qctl.control.telemetry_log import Tail, last_minutes

        try:
            await topology.ensure(self.connection, topology.telemetry())
            # Reaching back by itself for a minute, twice the time between two entries of a host.
            self._tail = await last_minutes(self.connection, 0.0)
        except ChannelLost as error:
            self._tail = Tail(why=str(error))
        except QctlError as error:
            self._tail = Tail(why=error.message)
        if self._tail.why:
            self._note(f"the telemetry log does not tell who is down: {self._tail.why}")
        targets = tuple(command.target for command in self._commands.values())
        for host, entry in self._tail.last().items():
            if host not in self.evidence and isinstance(entry, HostReading):
                found = tuple(one for one in _subscriptions(entry) if any(_concerns(each, one) for each in targets))
                self.foreign += found
                if found:
                    self._change(host)
                    self._ask([host])
        self._apply()

    async def _read_hellos(self) -> None:
        """Where nobody lists the connections, the control log still tells which hosts have never run."""
        if self._listed is not None:
            return
        from qctl.control.history import read_to_end

        try:
            known = await read_to_end(self.connection, operators=None, until=self.confirmed[-1].id)
        except ChannelLost as error:
            self._note(f"the control log does not tell who has ever run: {error}")
        except QctlError as error:
            self._note(f"the control log does not tell who has ever run: {error.message}")
        else:
            self._introduced = frozenset(known.desired.reigns)
        self._apply()

    async def _list(self, listed: Listed) -> None:
        try:
            self._listed = await listed()
        except QctlError as error:
            self._note(f"not checked with the broker's management API: {error.message}")
        self._apply()

    def _apply(self) -> None:
        """Tell each host what the telemetry log and the list of connections say of it."""
        from qctl.control.reading import HostReading

        last = self._tail.last() if self._tail is not None else {}
        is_whole = self._tail is not None and self._tail.proven and not self._tail.omitted
        for host in tuple(self.evidence):
            entry = last.get(host)
            heard = Heard.SILENT if is_whole else Heard.UNKNOWN
            if is_whole and self._introduced is not None and host not in self._introduced:
                heard = Heard.NEVER
            spoke: tuple[tuple[int, int], ...] = ()
            if isinstance(entry, HostReading):
                heard, spoke = Heard.SPEAKS, tuple((one.index, one.pid) for one in entry.processes)
            elif entry is not None:
                heard = Heard.GOODBYE
            listed = None if self._listed is None else host in self._listed
            self._change(host, heard=heard, spoke=spoke, listed=listed)

    async def _wait(self, closed: asyncio.Future[ChannelLost], *, timeout_s: float) -> None:
        """Until something came, the channel closed, or the time is over."""
        await moved_or(self._moved, closed, timeout_s=timeout_s)
        self._moved.clear()


@contextlib.asynccontextmanager
async def asking(connection: Connection) -> AsyncIterator[Asking]:
    """Make what is missing on the broker, and a queue for answers that ends with the connection.

    Raises BrokerRefused where this user may not, TopologyMismatch, BrokerUnreachable when the broker is lost.
    """
    try:
        await topology.ensure(connection, (*topology.control_log(), *topology.replies()))
        channel = await connection.channel()
        queue = f"qctl.replies.{secrets.token_hex(8)}"  # a name of qctl's, so that rights on `qctl.*` suffice
        found = Asking(connection, channel, queue, await Publisher.open(connection))
        found._questions = await Publisher.open(connection)  # noqa: SLF001 - its own channel: it may be refused alone
        limits = {"x-max-length": MAX_QUEUED}
        await channel.call("queue_declare", queue=queue, exclusive=True, auto_delete=True, arguments=limits)
        await channel.call("queue_bind", queue=queue, exchange=topology.REPLIES, routing_key=queue)
        await channel.call(
            "basic_consume",
            queue=queue,
            on_message_callback=found._deliver,  # noqa: SLF001
            auto_ack=True,
            consumer_tag=queue,
        )
    except ChannelLost as error:
        if error.code == topology.ACCESS_REFUSED:
            raise giving.refused(error) from None
        raise BrokerUnreachable(f"not given: the broker was lost before: {error}") from None
    yield found


def _all_answer(found: HostEvidence) -> bool:
    """Whether its supervisor has answered and each process that it has named: there is nothing to ask again."""
    answered = found.supervisor is Supervisor.ANSWERS
    return answered and all((look.index, look.pid) in found.answers for look in found.looks)


def _concerns(target: Target, one: Expected) -> bool:
    """Whether a target is about a subscription; which process of the host is meant does not matter."""
    return target.might_match_host(one.host) and replace(target, tag=None).matches(one.subject(0))


def _subscriptions(entry: HostReading) -> Iterable[Expected]:
    """What the processes of a host consume, as they say themselves."""
    found = {
        Expected(entry.host, consumer.name, tag.queue, directed=tag.tag.endswith("/directed"))
        for process in entry.processes
        for consumer in process.consumers
        for tag in consumer.tags
    }
    return sorted(found, key=lambda one: one.tag(0))
