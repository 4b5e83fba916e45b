"""The entry point: the table of commands, imported when they are called, and the one map of errors to exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import click
from click.exceptions import NoArgsIsHelpError, NoSuchCommand, NoSuchOption

from qctl.cli import render
from qctl.cli.options import VERBOSE, Settings, add_global_options, global_options
from qctl.errors import Exit, InventoryError, QctlError
from qctl.inventory.nearest import did_you_mean

#: The shell's variable that asks for completions instead of a run.
COMPLETE_VARIABLE = "_QCTL_COMPLETE"
#: How many -v show a traceback.
TRACEBACK_VERBOSITY = 2


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command: where it lives and how the help lists it."""

    name: str
    target: str  # "module:attribute"
    summary: str
    heading: str


_SETUP, _WORK, _CONTROL, _SEE, _SHELL = "Set up", "Work", "Control", "See", "Shell"

#: Every command, in the order of the help.
COMMANDS = (
    CommandEntry("init", "qctl.cli.init:init", "Write a starter inventory, commented.", _SETUP),
    CommandEntry("inventory", "qctl.cli.inventory:inventory", "Check the inventory; print its JSON Schema.", _SETUP),
    CommandEntry("broker", "qctl.cli.broker:broker", "Run a private RabbitMQ node for development.", _SETUP),
    CommandEntry("demo", "qctl.cli.demo:demo", "See it work: two servers, one quota each.", _SETUP),
    CommandEntry("enqueue", "qctl.cli.enqueue:enqueue", "Put tasks into a consumer's queue.", _WORK),
    CommandEntry("worker", "qctl.cli.worker:worker", "Run the tasks of this host.", _WORK),
    CommandEntry("queues", "qctl.cli.queues:queues", "Show queues; look into one; empty one.", _WORK),
    CommandEntry("dead", "qctl.cli.dead:dead", "Replay or drop tasks that were given up on.", _WORK),
    CommandEntry("pause", "qctl.cli.pausing:pause", "Turn consumers off, and prove it.", _CONTROL),
    CommandEntry("resume", "qctl.cli.pausing:resume", "Lift pauses; show what remains.", _CONTROL),
    CommandEntry("quota", "qctl.cli.quota:quota", "Show the limits that hold; change them live.", _CONTROL),
    CommandEntry("status", "qctl.cli.status:status", "Show hosts, consumers, quotas and queues once.", _SEE),
    CommandEntry("events", "qctl.cli.events:events", "Show who commanded what when.", _SEE),
    CommandEntry("why", "qctl.cli.why:why", "Say why a consumer or a queue is as it is.", _SEE),
    CommandEntry("plan", "qctl.cli.plan:plan", "Say when queues are empty and quotas run out.", _SEE),
    CommandEntry("tui", "qctl.cli.tui:tui", "The console: all of it live, and the keys to act.", _SEE),
    CommandEntry("completion", "qctl.cli.completion:completion", "Print the completion script of a shell.", _SHELL),
)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; its help is written from the table alone."""

    entries: ClassVar = {entry.name: entry for entry in COMMANDS}

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        if cmd_name not in self.commands:
            module, _, attribute = entry.target.partition(":")
            self.commands[cmd_name] = add_global_options(getattr(import_module(module), attribute))
        return self.commands[cmd_name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.entries and not name.startswith("-") and not ctx.resilient_parsing:
            raise NoSuchCommand(name, possibilities=self.entries, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading in dict.fromkeys(entry.heading for entry in self.entries.values()):
            with formatter.section(heading):
                formatter.write_dl([(e.name, e.summary) for e in self.entries.values() if e.heading == heading])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = [entry for name, entry in self.entries.items() if name.startswith(incomplete)]
        return [CompletionItem(entry.name, help=entry.summary) for entry in names] + click.Command.shell_complete(
            self, ctx, incomplete
        )


cli = LazyGroup(
    name="qctl",
    params=list(global_options()),
    help="Run and operate workers over RabbitMQ that keep each host within its API quotas.",
    epilog="Global options may also stand after the command. Help on one: qctl COMMAND --help.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process; the entry point of `qctl`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal in another encoding must not end the command
    if COMPLETE_VARIABLE in os.environ:
        cli.main(prog_name="qctl", complete_var=COMPLETE_VARIABLE, obj=Settings())
    context = click.Context(cli, info_name="qctl", obj=Settings(), **cli.context_settings)
    try:
        code = _run(context, list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    except BaseException as error:  # noqa: BLE001 - the last edge: whatever it is becomes a sentence and a code
        if isinstance(error, SystemExit):
            return _exit_code(error.code)
        try:
            sys.stdout.flush()
            return _report(error, verbose=int(context.meta.get(VERBOSE, 0)))
        except BrokenPipeError:
            return _reader_gone()
    return code


def _run(context: click.Context, arguments: list[str]) -> int:
    """Parse and run; the exit code."""
    try:
        with context.scope(cleanup=False):
            cli.parse_args(context, arguments)
        with context:
            return _exit_code(cli.invoke(context))
    except click.exceptions.Exit as ended:
        return ended.exit_code


def _exit_code(result: object) -> int:
    """Commands return nothing, or an exit code."""
    return int(result) if isinstance(result, int) and not isinstance(result, bool) else int(Exit.DONE)


def _reader_gone() -> int:
    """Whoever read our output has left (`qctl ... | head`): end like any program in a pipe, without a word."""
    # The interpreter flushes stdout once more when it ends; into the void then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _report(error: BaseException, *, verbose: int) -> int:
    """Say what happened on stderr, and what to do next; the exit code."""
    message, hint, code = _sentence(error)
    mistakes = error.mistakes if isinstance(error, InventoryError) else ()
    for mistake in mistakes:
        render.note(mistake)
    if message:
        render.note(f"qctl: error: {message}")
    if hint:
        render.note(f"  {hint}")
    if verbose >= TRACEBACK_VERBOSITY and not isinstance(error, (click.ClickException, KeyboardInterrupt)):
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            render.note(line)
    return int(code)


def _sentence(error: BaseException) -> tuple[str, str, int]:
    """What to say of an error: message, hint, exit code."""
    match error:
        case QctlError():
            return error.message, error.hint, error.exit_code
        case NoArgsIsHelpError():
            return "", error.message, Exit.USAGE
        case NoSuchCommand():
            near = did_you_mean(error.command_name, _siblings(error.ctx))
            return f"there is no command {error.command_name!r}", near or _try_help(error.ctx), Exit.USAGE
        case NoSuchOption():
            near = did_you_mean(error.option_name, _options(error.ctx))
            return f"there is no option {error.option_name}", near or _try_help(error.ctx), Exit.USAGE
        case click.UsageError():
            return _own_form(error.format_message()), _try_help(error.ctx), Exit.USAGE
        case click.ClickException():
            return _own_form(error.format_message()), "", error.exit_code
        case click.Abort() if error.__cause__ is None and error.__context__ is None:
            return "not confirmed, nothing was done", "", Exit.FAILED
        case KeyboardInterrupt() | click.Abort() | EOFError():
            return "interrupted", "", Exit.INTERRUPTED
        case OSError() if error.strerror:
            place = f" {error.filename}" if error.filename else ""
            return f"{error.strerror.lower()}{place}", "", Exit.FAILED
        case _:
            kind = type(error).__name__
            hint = "Please report it with what -vv prints in addition."
            return f"this is a bug in qctl: an unexpected {kind}", hint, Exit.FAILED


def _own_form(message: str) -> str:
    """Click's sentence in the form of ours: no capital, no final stop, one line."""
    text = " ".join(message.split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _try_help(context: click.Context | None) -> str:
    return f"See {context.command_path if context else 'qctl'} --help."


def _siblings(context: click.Context | None) -> list[str]:
    return context.command.list_commands(context) if context and isinstance(context.command, click.Group) else []


def _options(context: click.Context | None) -> list[str]:
    return [name for param in context.command.params for name in param.opts] if context else []
