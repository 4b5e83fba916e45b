"""Every error a user can meet.

Each carries one sentence (what happened, to what), a hint (what to do next) and the exit code of the command line.
Third-party exceptions stop at the edge of the module that owns the effect and become one of these; `qctl.cli.main`
alone turns them into text and a process exit status.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of the command line."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTLY = 3
    UNREACHABLE = 4
    REFUSED = 5
    TRY_AGAIN = 75
    INTERRUPTED = 130


class QctlError(Exception):
    """An error with a sentence for the user.

    message: one sentence without a final stop. hint: the next step, an imperative sentence, or "".
    """

    exit_code: Exit = Exit.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(QctlError):
    """The command was called wrongly: an unknown name, a value that cannot be."""

    exit_code = Exit.USAGE


class InventoryError(QctlError):
    """The inventory has mistakes; `mistakes` holds one line for each, `FILE:LINE:COLUMN: path: what`."""

    exit_code = Exit.USAGE

    def __init__(self, message: str, *, mistakes: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.mistakes = mistakes


class UnknownName(UsageError):
    """A host, consumer, quota or queue that the inventory does not know."""


class SecretError(UsageError):
    """A secret reference cannot be resolved. The message names the reference, never the value."""


class HandlerError(UsageError):
    """A handler of the inventory cannot be imported or is not callable."""


class StateError(UsageError):
    """The state directory cannot be used: not ours, not writable, not local."""


class LedgerError(QctlError):
    """The ledger cannot be read or written; no call may be made until it can."""


class BrokerUnreachable(QctlError):
    """No address of the broker answered in time."""

    exit_code = Exit.UNREACHABLE


class BrokerRefused(QctlError):
    """The broker answered and said no: credentials, permissions, virtual host, a lock held by another."""

    exit_code = Exit.REFUSED


class ControlLogError(QctlError):
    """The control log cannot be read to its end: what holds is not known, so nothing may be consumed."""


class LoginRefused(BrokerRefused):
    """The broker refused the user, its password, or the user the virtual host: the same again soon is refused too."""


class HostTaken(QctlError):
    """Another worker already runs as this host."""

    exit_code = Exit.REFUSED


class TopologyMismatch(QctlError):
    """A queue or exchange exists on the broker with other arguments than qctl declares."""

    exit_code = Exit.REFUSED


class BrokerBlocked(QctlError):
    """The broker takes no publishes at present (memory or disk alarm)."""

    exit_code = Exit.TRY_AGAIN


class Partly(QctlError):
    """Part of the work was done; the message says which."""

    exit_code = Exit.PARTLY


class Interrupted(QctlError):
    """The operator ended the command (Ctrl-C, SIGTERM)."""

    exit_code = Exit.INTERRUPTED
