"""Obeying: what the control log and the host itself command, applied to one process's consumers and quotas, and said.

Pauses apply where they are heard, in one go on the loop; limits are in force when the ledger has them. An answer goes
out when what it says is so: every consumer tag that a pause names is cancelled for certain, and nothing of it can start
any more.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from qctl.broker import topology
from qctl.broker.message import Outgoing, Properties, decode_json, short, utc
from qctl.control.desired import SEEN_BEFORE, Desired, Override, Pause, fold, judge
from qctl.control.event import Command, NotUnderstood, Record, Verb, read
from qctl.control.log import Heard, Known
from qctl.control.target import Subject
from qctl.errors import LedgerError
from qctl.worker.consumer import LiveConsumer
from qctl.worker.courier import Courier
from qctl.worker.limits import Limits, rates
from qctl.worker.state import Tag

log = logging.getLogger(__name__)

VERSION = 1
#: While something is to end at an hour of the wall clock, it is looked at the clock this often: it may be set.
LOOK_S = 1.0
#: A ledger that would not take new limits is asked again after this long.
LEDGER_AGAIN_S = 0.5
#: Answers under way; one more is dropped. Each waits for what runs nowhere but here.
MAX_ANSWERS = 200
#: What the host was told on itself and the log has not said yet.
MAX_LOCAL = 1_000
#: Of one subscription, in an answer.
MAX_REMAINS = 100


class Obeying:
    """One process's obedience. Use from the loop's thread."""

    def __init__(
        self,
        *,
        host: str,
        index: int,
        pid: int,
        consumers: Mapping[str, LiveConsumer],
        limits: Limits,
        courier: Courier,
        report: Callable[..., Any],
    ) -> None:
        """report(event="answer", answer=...): tells the supervisor, from any thread; it may take its time."""
        self._host = host
        self._identity = {"host": host, "index": index, "pid": pid}
        self._consumers = consumers
        self._limits = limits
        self._courier = courier
        self._report = report
        self._offset = -1
        self._hears = False
        self._log = Desired()
        self._local: dict[str, Command] = {}
        self._kept: tuple[Pause, ...] = ()  # of this host, refused by the log
        self._ended: set[str] = set()
        self._desired = Desired()
        self._timer: asyncio.TimerHandle | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._limiting: asyncio.Task[None] | None = None
        self._limited = asyncio.Event()

    async def begin(self, known: Known) -> None:
        """Apply what the log says, whatever it said before. Nothing is to be consumed before. Raises LedgerError."""
        if not (self._hears and known.offset < self._offset):  # while one reading is heard, another may be behind it
            self._offset = known.offset
            self._log = known.desired
        self._hears = True
        self._drop_local()
        self._apply()
        await self._limits.apply(self._desired, time.time())

    def cut_off(self) -> None:
        """From now on nobody tells what is commanded, until `begin`. What is known goes on to hold."""
        self._hears = False

    def hear(self, heard: Heard) -> None:
        """Obey the next entry of the log. One that was heard before is passed over."""
        if heard.record.offset <= self._offset:
            return
        self._offset = heard.record.offset
        self._log = heard.desired
        before = self._given_back()  # obeying gives back at once
        command, refused = heard.command, heard.refused
        if command is not None and refused in ("", SEEN_BEFORE):
            self._local.pop(command.id, None)
            if command.verb is Verb.RESUME and refused != SEEN_BEFORE:
                self._kept = fold(Desired(pauses=self._kept), [command]).pauses
            self._apply()
            self._tell(command)
            refused = ""  # given twice is obeyed once, and answered each time
        elif command is not None and (order := self._local.pop(command.id, None)) is not None:
            self._keep(order, refused)
            self._apply()
        record = heard.record
        if not record.reply_to or (command is None and not refused):
            return
        if command is None or command.target.might_match_host(self._host):
            self._start(self._answer(record.id, command, refused, record.reply_to, before))

    def obey_local(self, body: bytes) -> None:
        """Obey what was told the supervisor on this machine, until the log says it as well; answer to it."""
        identity = _identity_of(body)
        try:
            event = read(Record(-1, topology.CONTROL, identity, self._courier.username or "-", body))
            if not isinstance(event, Command) or event.verb not in (Verb.PAUSE, Verb.RESUME):
                raise NotUnderstood("only pause and resume are obeyed on the host itself")
        except NotUnderstood as why:
            log.error("an order of this host is not understood: %s", why)
            self._start(self._answer(identity, None, f"not understood: {why}", None, {}))
            return
        before = self._given_back()
        if not self._is_in_log(event):
            if len(self._local) >= MAX_LOCAL:
                self._start(self._answer(identity, None, f"more than {MAX_LOCAL} orders wait for the log", None, {}))
                return
            self._local[event.id] = event
            self._apply()
            self._tell(event)
        self._start(self._answer(event.id, event, "", None, before))

    def leave_limits(self) -> None:
        """A process of a newer inventory sees to the limits from now on."""
        self._limits.leave()

    def look_after_limits(self) -> None:
        """Have the limits hold that are wanted, should the ledger have others for long; called about twice a second."""
        if self._hears and self._limiting is None and self._limits.has_lost():
            self._see_to_limits()

    # What should be

    def _keep(self, order: Command, refused: str) -> None:
        """The log does not obey what this host was told on itself. A pause holds all the same until a resume: whoever
        gave it was told that it does, and nobody has lifted it."""
        if order.verb is Verb.PAUSE and len(self._kept) < MAX_LOCAL:
            self._kept = (*self._kept, *fold(Desired(), [order]).pauses)
            log.warning("pause %s given on this host stays until a resume, though: %s", order.target, refused)
        else:
            log.warning("%s %s given on this host does not hold any more: %s", order.verb, order.target, refused)

    def _is_in_log(self, command: Command) -> bool:
        return judge(command, None, self._log) == SEEN_BEFORE

    def _drop_local(self) -> None:
        self._local = {it: command for it, command in self._local.items() if not self._is_in_log(command)}

    def _apply(self) -> None:
        """Pause what is to be paused, and see to the limits."""
        now_s = time.time()
        base = replace(self._log, pauses=(*self._log.pauses, *self._kept)) if self._kept else self._log
        self._desired = desired = self._without_ended(fold(base, self._local.values()), now_s)
        mine = replace(desired, pauses=tuple(it for it in desired.pauses if it.target.might_match_host(self._host)))
        for name, live in self._consumers.items():
            live.pause({it.queue: mine.pauses_of(it, now_s) for it in self._subjects(name, live)})
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        ends_s = desired.ends_after(now_s)
        if ends_s is not None:
            delay_s = min(LOOK_S, ends_s - now_s)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)
        self._see_to_limits()

    def _see_to_limits(self) -> None:
        self._limited.clear()
        if self._limiting is None and self._offset >= 0:
            self._limiting = asyncio.get_running_loop().create_task(self._limit())

    def _look(self) -> None:
        """Something may have ended by itself."""
        now_s = time.time()
        entries: list[Pause | Override] = [*self._desired.pauses, *self._desired.overrides]
        if any(it.ended(now_s) for it in entries):
            self._apply()
            return
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _without_ended(self, desired: Desired, now_s: float) -> Desired:
        """What has ended stays ended, also when the clock is set back."""
        entries: list[Pause | Override] = [*desired.pauses, *desired.overrides]
        self._ended = {it.id for it in entries if it.id in self._ended or it.ended(now_s)}
        self._kept = tuple(it for it in self._kept if it.id not in self._ended)
        if not self._ended:
            return desired
        return replace(
            desired,
            pauses=tuple(it for it in desired.pauses if it.id not in self._ended),
            overrides=tuple(it for it in desired.overrides if it.id not in self._ended),
        )

    def _subjects(self, name: str, live: LiveConsumer) -> list[Subject]:
        return [Subject(self._host, name, queue, tag) for tag, queue, _ in live.subscriptions()]

    async def _limit(self) -> None:
        """Have the limits hold that are wanted by now; a ledger that cannot be written makes no calls meanwhile."""
        told = False
        try:
            while not self._limited.is_set():
                self._limited.set()
                try:
                    await self._limits.apply(self._desired, time.time(), hears=self._hears)
                # A bug of ours must not leave an old limit in force for ever.
                except Exception as error:
                    self._limited.clear()
                    if not told:
                        known = isinstance(error, LedgerError)
                        words = error.message if isinstance(error, LedgerError) else type(error).__name__
                        log.error("limits cannot be changed yet: %s", words, exc_info=not known)
                    told = True
                    await asyncio.sleep(LEDGER_AGAIN_S)
        finally:
            self._limiting = None

    def _tell(self, command: Command) -> None:
        if command.target.might_match_host(self._host):
            claimed = f" as {command.claimed_by}" if command.claimed_by else ""
            what = command.quota or command.target
            log.info("%s %s by %s%s id=%s", command.verb, what, command.user, claimed, command.id)

    # Answers

    def _start(self, answering: Coroutine[Any, Any, None]) -> None:
        if len(self._answers) >= MAX_ANSWERS:
            log.warning("an answer to a control event is dropped: %d others are under way", MAX_ANSWERS)
            answering.close()
            return
        task = asyncio.get_running_loop().create_task(answering)
        self._answers.add(task)
        task.add_done_callback(self._on_answered)

    def _on_answered(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("a control event is not answered", exc_info=task.exception())

    def _given_back(self) -> dict[str, int]:
        """Deliveries that each tag has given back so far."""
        return {tag.tag: tag.given_back for live in self._consumers.values() for tag in live.rows()}

    async def _answer(
        self, identity: str, command: Command | None, refused: str, reply_to: str | None, before: Mapping[str, int]
    ) -> None:
        """Answer when it is so. reply_to None: to the supervisor. before: what was given back before it was obeyed."""
        rows: list[dict[str, Any]] = []
        quotas: list[dict[str, Any]] = []
        if command is not None and command.quota is None:
            rows = await self._rows(command, before, wait=command.verb is Verb.PAUSE and not refused)
        elif command is not None:
            if not refused:
                await self._when_limited()
            quotas = self._quotas(command)
        answer = {
            "v": VERSION,
            "id": identity,
            "at": utc(time.time()),
            **self._identity,
            "rows": rows,
            "quotas": quotas,
            "refused": refused or None,
        }
        if reply_to is None:
            await asyncio.to_thread(self._report, event="answer", answer=answer)
        elif why := self._courier.send(_outgoing(answer, identity, reply_to, self._courier.username)):
            log.warning("an answer to a control event is dropped: %s", why)

    async def _rows(self, command: Command, before: Mapping[str, int], *, wait: bool) -> list[dict[str, Any]]:
        meant = {
            name: {it.queue for it in self._subjects(name, live) if command.target.matches(it)}
            for name, live in self._consumers.items()
        }
        if wait:
            await asyncio.gather(*(self._consumers[name].paused(queues) for name, queues in meant.items() if queues))
        return [
            _row(live, tag, before[tag.tag])
            for name, live in self._consumers.items()
            for tag in live.rows()
            if tag.queue in meant[name]
        ]

    async def _when_limited(self) -> None:
        while self._limiting is not None:
            await asyncio.wait([self._limiting])

    def _quotas(self, command: Command) -> list[dict[str, Any]]:
        return [
            {"quota": it.name, "limits": rates(it), "override": _override(self._limits.overrides.get(it.name))}
            for it in self._limits.policies
            if command.scope.matches(self._host, it.name)
        ]


def _identity_of(body: bytes) -> str:
    """The id that an order has, as far as it can be read."""
    try:
        fields = decode_json(body)
    except ValueError:
        return "-"
    return short(str(fields.get("id"))) if isinstance(fields, dict) and isinstance(fields.get("id"), str) else "-"


def _outgoing(answer: Mapping[str, Any], identity: str, reply_to: str, username: str) -> Outgoing:
    properties = Properties(
        message_id=secrets.token_hex(16),
        correlation_id=identity,
        user_id=username,
        content_type="application/json",
        timestamp=int(time.time()),
    )
    return Outgoing(topology.REPLIES, reply_to, json.dumps(answer, separators=(",", ":")).encode(), properties)


def _row(live: LiveConsumer, tag: Tag, given_back_before: int) -> dict[str, Any]:
    pauses = live.pauses_of(tag.queue)
    shown = pauses[0] if pauses else None
    return {
        "consumer": live.name,
        "queue": tag.queue,
        "tag": tag.tag,
        "state": tag.state,
        "why": live.why,
        "since": utc(live.since_s),
        "by": shown.user if shown else None,
        "until": _instant(shown.until_s if shown else None),
        "cancelled_at": _instant(tag.cancelled_at_s),
        "running": tag.running,
        "given_back": tag.given_back - given_back_before,
        "remains": [
            {
                "id": it.id,
                "target": str(it.target),
                "by": it.user,
                "reason": it.reason,
                "until": _instant(it.until_s),
            }
            for it in pauses[:MAX_REMAINS]
        ],
    }


def _override(override: Override | None) -> dict[str, Any] | None:
    if override is None:
        return None
    return {
        "id": override.id,
        "rates": override.rates,
        "by": override.user,
        "reason": override.reason,
        "until": _instant(override.until_s),
        "at": override.at,
    }


def _instant(at_s: float | None) -> str | None:
    return None if at_s is None else utc(at_s)
