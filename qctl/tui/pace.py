"""How the interpreter is set while a console runs in it: so that no key waits long for its paint."""

from __future__ import annotations

import gc
import sys

#: A source computes in a thread of its own; so long it keeps the interpreter when a key has come.
SWITCH_S = 0.001
#: Values that are made more than freed until the collector looks for cycles among them; by default it is 700.
GC_VALUES = 50_000


def keys_first() -> None:
    """To be called once, when all is imported.

    Snapshots are many small values without cycles, freed as soon as the next one is there. A search for cycles among
    them finds none, takes up to 100 ms, and would come about every second.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()
    gc.set_threshold(GC_VALUES, 20, 20)
