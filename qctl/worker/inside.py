"""Whether a thread that was let start a task is inside its handler by now, or still on the way there.

Between the last look at whether a task may start and the first line of its handler a thread can lose the interpreter
to others for as long as they please: no pause of ours is long enough to be a proof that it got there. Its stack is one:
whoever holds the interpreter sees where every other thread stands.
"""

from __future__ import annotations

import opcode
import sys
from types import CodeType

#: Frames of these modules stand between the look and the handler. Right after it, too: then one looks again.
_BEFORE = ("qctl.worker.execute", "qctl.worker.handlers.python")
#: A function that is entered can lose the interpreter at this instruction, before its first line.
_RESUME = opcode.opmap["RESUME"]


def is_inside(thread: int) -> bool:
    """True when the thread is in what a handler does, or has done with it. thread: an ident; one that is gone counts.

    For a handler that is not written in Python it is never seen to be, until it has returned.
    """
    frame = sys._current_frames().get(thread)  # noqa: SLF001  (there is no other way to ask)
    if frame is None:
        return True
    return frame.f_globals.get("__name__") not in _BEFORE and frame.f_lasti > _entry(frame.f_code)


def _entry(code: CodeType) -> int:
    return 2 * code.co_code[::2].index(_RESUME)
