"""Who commanded what when: the commands of the control log, and what was ignored of them, with why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from qctl.broker import topology
from qctl.broker.connect import backoff
from qctl.broker.message import short
from qctl.broker.session import ChannelLost, Connection
from qctl.control.event import NOTICES, Command, Notice, Record, Verb
from qctl.control.history import Entry, entries
from qctl.control.quota_reading import ForeignReading
from qctl.control.stream import Place, peek
from qctl.errors import BrokerRefused, BrokerUnreachable, ControlLogError
from qctl.ops.spending import SOMEBODY_ELSE, amount, by_somebody_else
from qctl.ops.when import instant, iso

#: A log that has an entry delivers it within this.
LAST_S = 3.0


#: What notices say, in the words of every other view.
_NOTICES = {
    NOTICES[begins]: f"spending by {SOMEBODY_ELSE} {'begins' if begins else 'ends'}" for begins in (True, False)
}


@dataclass(frozen=True, slots=True)
class Happened:
    """An entry of the control log that is no greeting of a worker: a command, or what a host has found out.

    user: verified by the broker, "" when nobody said; claimed_by, at: what the command says of itself. verb "": it is
    no command. notice: what a host has found out, and `reason` in numbers, "" for anything else; since_s: since when.
    ignored: why it is not obeyed, "" when it is.
    """

    offset: int
    id: str
    user: str
    verb: str = ""
    target: str = ""
    rates: tuple[str, ...] = ()
    at: str | None = None
    claimed_by: str | None = None
    reason: str | None = None
    until_s: float | None = None
    local: bool = False
    ignored: str = ""
    notice: str = ""
    since_s: float | None = None

    @property
    def found_out(self) -> str:
        """What a host has found out, in words; "" for anything else."""
        return _NOTICES.get(self.notice, self.notice)

    def item(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "offset": self.offset,
            "id": self.id,
            "at": self.at,
            "by": self.user or None,
            "as": self.claimed_by,
            "verb": self.verb or None,
            "target": self.target or None,
            "limits": list(self.rates),
            "until": iso(self.until_s),
            "reason": self.reason,
            "local": self.local,
            "ignored": self.ignored or None,
            "notice": self.notice or None,
            "since": iso(self.since_s),
        }


def happened(entry: Entry) -> Happened | None:
    """What an entry of the log tells an operator; None for a worker's greeting."""
    record, event = entry.record, entry.event
    if isinstance(event, Command):
        quota = event.verb in (Verb.QUOTA_SET, Verb.QUOTA_CLEAR)
        return Happened(
            offset=record.offset,
            id=short(event.id),
            user=short(record.user),
            verb=event.verb.value,
            target=f"{event.target.host}/{event.quota}" if quota else str(event.target),
            rates=event.rates,
            at=event.at,
            claimed_by=event.claimed_by,
            reason=event.reason,
            until_s=event.until_s,
            local=event.local,
            ignored=entry.refused,
        )
    if isinstance(event, Notice):
        return _found_out(record, event)
    if event is None:
        return Happened(record.offset, short(record.id), short(record.user), ignored=entry.refused or "not understood")
    return None


def _found_out(record: Record, event: Notice) -> Happened:
    until_s = instant(event.until)
    foreign = ForeignReading(event.units, event.most, event.ours, 0.0, event.limit, event.remaining)
    return Happened(
        offset=record.offset,
        id=short(event.id),
        user=short(record.user),
        target=f"{event.host}/{event.quota}",
        at=event.at,
        reason=by_somebody_else(foreign, event.limit_units, str)
        if event.begins
        else f"at most {amount(foreign)} of {event.limit_units} at one time",
        until_s=until_s,
        notice=NOTICES[event.begins],
        since_s=instant(event.since),
    )


async def recorded(
    connection: Connection, *, operators: frozenset[str] | None, since_s: float | None
) -> AsyncIterator[Happened]:
    """What is in the log, in order. Raises ControlLogError, BrokerRefused, BrokerUnreachable."""
    try:
        async with aclosing(_entries(connection, operators, since_s)) as found:
            async for entry in found:
                if (event := happened(entry)) is not None:
                    yield event
    except ChannelLost as error:
        raise BrokerUnreachable(f"the broker was lost: {error}", hint="Try again when it is back.") from None
    except ControlLogError as error:
        raise told(error) from None


def told(error: ControlLogError) -> BrokerRefused | ControlLogError:
    """An error of the reading as somebody meets it who only looks: of the rights one alone is missing."""
    lost = error.__cause__
    if isinstance(lost, ChannelLost) and lost.code == topology.ACCESS_REFUSED:
        return BrokerRefused(error.message, hint=f"Its user needs to read {topology.CONTROL_LOG}.")
    return error


async def followed(
    dial: Callable[[], Awaitable[Connection]],
    *,
    operators: frozenset[str] | None,
    since_s: float | None,
    say: Callable[[str], None],
) -> AsyncIterator[Happened]:
    """What is in the log, and what comes to it, for ever; a broker that goes away is waited for.

    dial: connects once. say(words): the broker was lost, or is back. Each event comes once and none is left out, unless
    the log itself is another one afterwards, which is said. Raises what `dial` raises the first time.
    """
    last: Place | None = None
    pauses = backoff()
    connection = await dial()
    while True:
        try:
            if last is not None and not await _same_log(connection, last):
                say("the control log is another one than before; this is all that is in it")
                last, since_s = None, None
            # Later readings begin at the beginning: whoever has the last event knows which are new.
            since = since_s if last is None else None
            async with aclosing(_entries(connection, operators, since, follow=True)) as found:
                async for entry in found:
                    pauses = backoff()
                    if last is not None and entry.record.offset <= last.offset:
                        continue
                    last = entry.record
                    if (event := happened(entry)) is not None:
                        yield event
        except (ChannelLost, ControlLogError) as error:
            if last is None and connection.is_open:
                raise (told(error) if isinstance(error, ControlLogError) else error) from None
            say(f"the control log cannot be followed at present: {error}")
        finally:
            await asyncio.shield(connection.close())
        connection = await _again(dial, pauses)
        say("the broker is back")


def _entries(
    connection: Connection, operators: frozenset[str] | None, since_s: float | None, *, follow: bool = False
) -> AsyncGenerator[Entry, None]:
    found = entries(connection, operators=operators, since_s=since_s, follow=follow)
    assert isinstance(found, AsyncGenerator)
    return found


async def _again(dial: Callable[[], Awaitable[Connection]], pauses: Iterator[float]) -> Connection:
    for pause_s in pauses:
        await asyncio.sleep(pause_s)
        try:
            return await dial()
        except BrokerUnreachable:
            continue
    raise AssertionError("the pauses never end")


async def _same_log(connection: Connection, last: Place) -> bool:
    """Whether the log is the one that had `last`: it still has it there."""
    found = await peek(connection, last.offset, least=last.offset, timeout_s=LAST_S)
    return found is not None and (found.offset, found.id) == (last.offset, last.id)
