"""Reading the control log's entries one after the other and folding them; what is no event, or not obeyed, is said."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from qctl.broker.message import short
from qctl.broker.session import Channel, ChannelLost
from qctl.control.desired import Desired, Folding
from qctl.control.event import Command, Event, NotUnderstood, Record, read
from qctl.control.stream import Elsewhere, Place, Step, Stream, Track, unreadable
from qctl.errors import ControlLogError

log = logging.getLogger(__name__)

#: Hosts that ever said hello; what each costs is kept in memory by every process.
MAX_HOSTS = 100_000
#: Pauses and overrides on the way to the end, where most of them may have been lifted.
MAX_WHILE_READING = 100_000
#: Parts lifted out of them, on that way: about 100 bytes each.
MAX_LIFTED_WHILE_READING = 500_000
#: So many commands later it is looked again what has ended meanwhile.
LOOK_EVERY = 1_000
#: Kinds of entries that are reported, each once by each user.
MAX_KINDS = 100

NOT_UNDERSTOOD = "not understood: "


@dataclass(frozen=True, slots=True)
class Known:
    """What the log says up to and with the event `id` at `offset`. offset -1: nothing yet."""

    offset: int
    id: str
    desired: Desired


#: Before the first event.
NOTHING = Known(-1, "", Desired())


class Following:
    """What one stream delivers, folded.

    on_event(record, event, refused) is called for every entry behind the one to go on from: event None when it is none,
    refused says why, or why it is not obeyed. on_end is called once, when it cannot go on. on_gap(record), when set, is
    called with an entry that stands behind a gap; if it says True, it is to be given to `take` later.
    """

    def __init__(
        self,
        channel: Channel,
        track: Track,
        folding: Folding,
        *,
        on_event: Callable[[Record, Event | None, str], None],
        on_end: Callable[[ChannelLost | ControlLogError | Elsewhere], None],
    ) -> None:
        self.stream = Stream(channel, self._take, self.fail)
        self.refused = 0
        #: The entry before the first gap that nobody looked at yet.
        self.gap: Place | None = None
        self.on_gap: Callable[[Record], bool] = lambda _record: False
        self._track = track
        self._folding = folding
        self._on_event = on_event
        self._on_end = on_end
        self._ended = False
        self._commands = 0
        self._said: set[tuple[str, str]] = set()

    @property
    def last(self) -> Place | None:
        """The last entry that came."""
        return self._track.last

    def desired(self) -> Desired:
        """What the entries say so far, without what has ended."""
        self._folding.drop_ended(time.time())
        return self._folding.desired()

    async def close(self) -> None:
        """End it; on_end is not called any more."""
        self._ended = True
        await self.stream.close()

    def fail(self, why: str | ChannelLost | ControlLogError | Elsewhere) -> None:
        """It cannot go on."""
        if not self._ended:
            self._ended = True
            self.stream.hold()
            self._on_end(unreadable(why) if isinstance(why, str) else why)

    def _take(self, record: Record) -> None:
        if self._ended:
            return
        before = self._track.last
        try:
            step = self._track.take(record)
        except (ControlLogError, Elsewhere) as error:
            self.fail(error)
            return
        if step is Step.BEFORE:
            return
        if step is Step.BEHIND_A_GAP and before is not None:
            self.gap = self.gap or before
            if self.on_gap(record):
                return
        self.take(record)

    def take(self, record: Record) -> None:
        """Take in an entry whose place is right."""
        event: Event | None = None
        try:
            event = read(record)
            refused, kind = self._folding.add(event), "refused"
        except NotUnderstood as why:
            refused, kind = f"{NOT_UNDERSTOOD}{why}", why.kind
        if refused:
            self._say(record, refused, kind)
        elif isinstance(event, Command):
            self._bound()
        elif self._folding.hosts > MAX_HOSTS:
            self.fail(f"it names more than {MAX_HOSTS} hosts")
        if not self._ended:
            self._on_event(record, event, refused)

    def _bound(self) -> None:
        self._commands += 1
        if self._commands % LOOK_EVERY == 0:
            self._folding.drop_ended(time.time())
        if len(self._folding) > MAX_WHILE_READING:
            self.fail(f"it has more than {MAX_WHILE_READING} commands in force at once")
        elif self._folding.parts > MAX_LIFTED_WHILE_READING:
            self.fail(f"more than {MAX_LIFTED_WHILE_READING} parts of its commands are lifted at once")

    def _say(self, record: Record, why: str, kind: str) -> None:
        self.refused += 1
        if len(self._said) < MAX_KINDS and (kind, record.user) not in self._said:
            self._said.add((kind, record.user))
            user = short(record.user) or "-"
            log.warning("the control log has an entry that is ignored: offset=%d user=%s: %s", record.offset, user, why)
