"""The commands on the inventory, and how every command behaves: options, errors, exit codes, pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qctl.cli.main import COMMANDS
from qctl.inventory.load import load
from tests.unit.cli.conftest import QCTL, ROOT, TWO_HOSTS, Run

TABLE = """\
HOST   CONSUMER  QUEUE     HANDLER  TASKS  TIMEOUT  SPENDS PER TASK
web-1  timeline  timeline  exec         8      30s  twitter 1 of 300/15m+20000/h
web-1  mails     outbox    python       8      30s  nothing
web-2  timeline  timeline  exec        64      30s  twitter 1 of 100000/h
"""


class TestInventoryCheck:
    """`qctl inventory check`."""

    def test_it_prints_what_each_host_will_run_and_spend(self, run: Run, inventory: Path) -> None:
        done = run("inventory", "check")
        assert (done.returncode, done.stdout) == (0, TABLE)
        assert done.stderr == f"{inventory}: no mistakes; 2 hosts, 2 consumers, 1 quota\n"

    def test_wide_has_the_same_rows_and_more_columns(self, run: Run, inventory: Path) -> None:
        lines = run("inventory", "check", "-o", "wide").stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["HOST", "web-1", "web-1", "web-2"]
        assert lines[0].split()[-1] == "DECLARE"
        assert "5s 30s 5m" in lines[1]

    def test_json(self, run: Run, inventory: Path) -> None:
        document = json.loads(run("inventory", "check", "-o", "json").stdout)
        assert document["v"] == 1
        assert document["inventory"] == str(inventory)
        assert document["broker"] == "local"
        assert document["hosts"] == ["web-1", "web-2"]
        assert document["items"][2] == {
            "host": "web-2",
            "group": "large",
            "consumer": "timeline",
            "queue": "timeline",
            "handler": "exec",
            "concurrency": 64,
            "timeout_s": 30.0,
            "attempts": 5,
            "delays_s": [5.0, 30.0, 300.0],
            "directed": False,
            "persistent": True,
            "declare": True,
            "spends": [{"quota": "twitter", "cost_units": 1, "limits": ["100000/h"], "window": "sliding"}],
        }

    def test_jsonl_has_an_item_a_line_and_name_an_address(self, run: Run, inventory: Path) -> None:
        items = [json.loads(line) for line in run("inventory", "check", "-o", "jsonl").stdout.splitlines()]
        assert items == json.loads(run("inventory", "check", "-o", "json").stdout)["items"]
        assert run("inventory", "check", "-o", "name").stdout == "web-1/timeline\nweb-1/mails\nweb-2/timeline\n"

    def test_five_hundred_hosts_are_five_hundred_rows(self, run: Run, inventory: Path) -> None:
        inventory.write_text(TWO_HOSTS.split("hosts:")[0] + 'hosts: {"web-[001-500]": {consumers: {timeline: }}}\n')
        lines = run("inventory", "check").stdout.splitlines()
        assert len(lines) == 501
        assert len(set(map(len, lines[1:]))) == 1
        assert lines[500].startswith("web-500  timeline")

    def test_mistakes_are_all_told_with_their_places(self, run: Run, inventory: Path) -> None:
        inventory.write_text(TWO_HOSTS.replace("300/15m", "300/15x").replace("{group: large", "{group: larg"))
        done = run("inventory", "check")
        assert done.returncode == 2
        assert done.stdout == ""
        first, second, error, hint = done.stderr.splitlines()
        assert first.startswith("inventory.yaml:3:20: quotas.twitter[0]: expected a rate N/PERIOD")
        assert second.startswith(
            "inventory.yaml:11:18: hosts.web-2.group: there is no group of this name; did you mean large?"
        )
        assert error == "qctl: error: inventory.yaml has 2 mistakes"
        assert hint == "  Correct them, then run: qctl inventory check"

    def test_no_secret_is_resolved(self, run: Run, inventory: Path, work: Path) -> None:
        # given secrets that leave a trace when they are resolved, or cannot be
        trace = work / "resolved"
        secrets = f"username: {{env: NOT_SET}}, password: {{command: [touch, '{trace}']}}"
        broker = f"{{amqp: 'amqp://nowhere.invalid/', {secrets}}}"
        inventory.write_text(TWO_HOSTS.replace("broker: local", f"broker: {broker}"))
        assert run("inventory", "check").returncode == 0
        assert not trace.exists()

    def test_the_inventory_of_the_environment_is_used(self, run: Run, work: Path) -> None:
        other = work / "other.yaml"
        other.write_text(TWO_HOSTS)
        assert run("inventory", "check", env={"QCTL_INVENTORY": str(other)}).stdout == TABLE

    def test_without_an_inventory(self, run: Run) -> None:
        done = run("inventory", "check")
        assert done.returncode == 2
        assert "qctl: error: no inventory found" in done.stderr
        assert "qctl init" in done.stderr


def test_inventory_schema_prints_the_schema(run: Run) -> None:
    schema = json.loads(run("inventory", "schema").stdout)
    assert schema["required"] == ["version", "broker", "consumers", "hosts"]


class TestInit:
    """`qctl init`."""

    def test_the_starter_passes_the_check(self, run: Run, work: Path) -> None:
        done = run("init")
        assert (done.returncode, done.stdout) == (0, "inventory.yaml\n")
        assert run("inventory", "check").returncode == 0
        inventory = load(work / "inventory.yaml")
        assert inventory.broker.local
        assert list(inventory.consumers) == ["hello"]

    def test_the_starter_itself_passes_the_check(self) -> None:
        assert list(load(ROOT / "qctl/inventory/starter.yaml").hosts) == ["this-host"]

    @pytest.mark.parametrize(
        ("hostname", "host"),
        [("web-7.example.com", "web-7"), ("WEB7", "WEB7"), ("-odd-", "this-host"), ("", "this-host")],
    )
    def test_its_host_is_this_machine(self, hostname: str, host: str, work: Path) -> None:
        from qctl.cli.init import starter

        path = work / "inventory.yaml"
        path.write_text(starter(hostname))
        assert list(load(path).hosts) == [host]

    def test_what_its_comments_say_holds_too(self, work: Path) -> None:
        # given the starter with its commented parts taken in
        text = (ROOT / "qctl/inventory/starter.yaml").read_text()
        text = re.sub(r"(?m)^#   (groups:)\n#  ", r"\1\n ", text)
        text = re.sub(r"(?m)^(  )# (web-2:|\"web-\[)", r"\1\2", text)
        text = re.sub(r"(?m)^    #   (\w+:)", r"    \1", text)
        path = work / "inventory.yaml"
        path.write_text(text)

        # then it is valid, and says what the comments promise
        inventory = load(path)
        assert len(inventory.hosts) == 40
        assert inventory.hosts["web-40"].quotas["example"].limits[0].units == 600
        assert inventory.hosts["web-2"].consumers["hello"].concurrency == 64

    def test_it_replaces_nothing_unless_forced(self, run: Run, inventory: Path) -> None:
        done = run("init")
        assert done.returncode == 1
        assert done.stderr.splitlines()[0] == "qctl: error: inventory.yaml exists already"
        assert "--force" in done.stderr
        assert inventory.read_text() == TWO_HOSTS
        assert run("init", "--force").returncode == 0
        assert "hello" in inventory.read_text()
        assert sorted(path.name for path in inventory.parent.iterdir()) == ["inventory.yaml"]

    def test_it_writes_where_i_says(self, run: Run, work: Path) -> None:
        assert run("init", "-i", "mine.yaml").stdout == "mine.yaml\n"
        assert (work / "mine.yaml").exists()

    def test_it_says_why_it_cannot(self, run: Run) -> None:
        done = run("init", "-i", "nowhere/mine.yaml")
        assert done.returncode == 2
        assert "cannot write nowhere/mine.yaml: no such file or directory" in done.stderr


class TestGlobalOptions:
    """Before the command, between its words, and after it."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["-i", "other.yaml", "-o", "name", "-q", "inventory", "check"],
            ["inventory", "-i", "other.yaml", "-o", "name", "-q", "check"],
            ["inventory", "check", "-i", "other.yaml", "-o", "name", "-q"],
            ["-o", "json", "inventory", "-o", "wide", "check", "--output=name", "--inventory=other.yaml", "--quiet"],
        ],
    )
    def test_they_mean_the_same_everywhere_and_the_last_wins(self, run: Run, work: Path, arguments: list[str]) -> None:
        (work / "other.yaml").write_text(TWO_HOSTS)
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "web-1/timeline\nweb-1/mails\nweb-2/timeline\n"

    @pytest.mark.parametrize("arguments", [["--version"], ["inventory", "check", "--version"]])
    def test_the_version(self, run: Run, arguments: list[str]) -> None:
        done = run(*arguments)
        assert done.returncode == 0
        assert re.fullmatch(r"qctl \d+\.\d+\.\d+\n", done.stdout)

    @pytest.mark.parametrize("arguments", [["--connect-timeout", "10"], ["init", "--connect-timeout", "x"]])
    def test_a_duration_is_checked(self, run: Run, arguments: list[str]) -> None:
        done = run(*arguments)
        assert done.returncode == 2
        assert "expected a duration such as 250ms" in done.stderr

    def test_the_help_of_a_command_points_to_them(self, run: Run) -> None:
        done = run("inventory", "check", "--help")
        assert "Global options (see qctl --help)" in done.stdout
        assert "--connect-timeout" not in done.stdout
        assert "--connect-timeout" in run("--help").stdout


class TestErrors:
    """One form for all: what happened, what to do next, the exit code."""

    @pytest.mark.parametrize(
        ("arguments", "message", "hint"),
        [
            (["inventry"], "there is no command 'inventry'", "Did you mean inventory?"),
            (["zzz"], "there is no command 'zzz'", "See qctl --help."),
            (["inventory", "chekc"], "there is no command 'chekc'", "Did you mean check?"),
            (["--verson"], "there is no option --verson", "Did you mean --version?"),
            (["inventory", "check", "--outptu", "json"], "there is no option --outptu", "Did you mean --output?"),
            (["inventory", "check", "x"], "got unexpected extra argument (x)", "See qctl inventory check --help."),
            (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'", "See qctl completion --help."),
            (["-o"], "option '-o' requires an argument", "See qctl --help."),
            (["-i", "none.yaml", "inventory", "check"], "there is no inventory none.yaml", "Write one with qctl init"),
        ],
    )
    def test_a_wrong_call_exits_2(self, run: Run, arguments: list[str], message: str, hint: str) -> None:
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        first, second = done.stderr.splitlines()
        assert first.startswith("qctl: error: ")
        assert message in first
        assert second.startswith(f"  {hint}")

    def test_without_a_command_the_help_is_shown(self, run: Run) -> None:
        done = run()
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: qctl" in done.stderr
        assert "qctl: error" not in done.stderr

    def test_terminal_codes_in_an_argument_are_shown_not_obeyed(self, run: Run) -> None:
        done = run("\x1b[31mred\u202e")
        assert "\x1b" not in done.stderr
        assert "\u202e" not in done.stderr


def run_main(work: Path, environ: dict[str, str], body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process in which the command `probe` does `body`."""
    program = f"""
import sys, click
from qctl import errors
from qctl.cli import main, render
from qctl.cli.options import pass_settings

@click.command()
@pass_settings
def probe(settings):
    {body}

main.LazyGroup.entries = {{"probe": main.CommandEntry("probe", "probe:probe", "", "")}}
sys.modules["probe"] = type(sys)("probe")
sys.modules["probe"].probe = probe
sys.exit(main.main({["probe", *arguments]!r}))
"""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=work, env=environ, capture_output=True, text=True, timeout=60
    )


class TestExitCodes:
    """What a command raises or returns becomes an exit code, and a sentence."""

    @pytest.mark.parametrize(
        ("body", "code", "stderr"),
        [
            ("pass", 0, ""),
            ("return errors.Exit.PARTLY", 3, ""),
            ("return True", 0, ""),
            ("click.get_current_context().exit(4)", 4, ""),
            ("raise SystemExit(7)", 7, ""),
            ("raise errors.QctlError('it broke', hint='Mend it.')", 1, "qctl: error: it broke\n  Mend it.\n"),
            ("raise errors.UsageError('no')", 2, "qctl: error: no\n"),
            ("raise errors.Partly('half')", 3, "qctl: error: half\n"),
            ("raise errors.BrokerUnreachable('gone')", 4, "qctl: error: gone\n"),
            ("raise errors.BrokerRefused('no')", 5, "qctl: error: no\n"),
            ("raise errors.BrokerBlocked('later')", 75, "qctl: error: later\n"),
            ("raise errors.Interrupted('stopped')", 130, "qctl: error: stopped\n"),
            ("raise KeyboardInterrupt", 130, "qctl: error: interrupted\n"),
            ("raise click.Abort", 1, "qctl: error: not confirmed, nothing was done\n"),
            ("open('/nothing/here')", 1, "qctl: error: no such file or directory /nothing/here\n"),
            ("raise errors.QctlError('x' + chr(27) + '[1m')", 1, "qctl: error: x\\x1b[1m\n"),
        ],
    )
    def test_code_and_sentence(self, work: Path, environ: dict[str, str], body: str, code: int, stderr: str) -> None:
        done = run_main(work, environ, body)
        assert (done.returncode, done.stderr) == (code, stderr)

    def test_a_bug_is_called_a_bug_without_a_traceback(self, work: Path, environ: dict[str, str]) -> None:
        done = run_main(work, environ, "raise ZeroDivisionError('hunter2')")
        assert done.returncode == 1
        assert done.stderr.splitlines()[0] == "qctl: error: this is a bug in qctl: an unexpected ZeroDivisionError"
        assert "-vv" in done.stderr
        assert "Traceback" not in done.stderr
        assert "hunter2" not in done.stderr

    @pytest.mark.parametrize("arguments", [["-vv"], ["-v", "--verbose"]])
    def test_vv_shows_the_traceback(self, work: Path, environ: dict[str, str], arguments: list[str]) -> None:
        done = run_main(work, environ, "raise errors.QctlError('it broke')", *arguments)
        assert done.returncode == 1
        assert "qctl: error: it broke\n" in done.stderr
        assert "Traceback (most recent call last):" in done.stderr

    def test_v_does_not(self, work: Path, environ: dict[str, str]) -> None:
        assert "Traceback" not in run_main(work, environ, "raise errors.QctlError('it broke')", "-v").stderr

    def test_what_was_printed_before_an_error_is_kept(self, work: Path, environ: dict[str, str]) -> None:
        done = run_main(work, environ, "render.line('half'); raise errors.Partly('the rest is missing')")
        assert (done.returncode, done.stdout) == (3, "half\n")

    def test_ctrl_c(self, work: Path, environ: dict[str, str]) -> None:
        body = "import os, signal; os.kill(os.getpid(), signal.SIGINT); signal.pause()"
        done = run_main(work, environ, body)
        assert done.returncode == 130
        assert done.stderr.splitlines()[-1] == "qctl: error: interrupted"

    @pytest.mark.parametrize("lines", [1, 100_000])
    def test_a_reader_that_leaves_is_no_error(self, work: Path, environ: dict[str, str], lines: int) -> None:
        # given a pipe whose reading end is closed before anything is written
        reading, writing = os.pipe()
        os.close(reading)
        program = f"from qctl.cli import render\nfor _ in range({lines}): render.line('x' * 80)"
        code = (
            "import sys; from qctl.cli import main\n"
            f"main._run = lambda *_: exec({program!r}) or 0\n"
            "sys.exit(main.main([]))"
        )
        with os.fdopen(writing, "wb") as stdout:
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=work, env=environ, stdout=stdout, stderr=subprocess.PIPE, timeout=60
            )
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")

    def test_head_gets_its_lines(self, work: Path, environ: dict[str, str], inventory: Path) -> None:
        inventory.write_text(TWO_HOSTS.split("hosts:")[0] + 'hosts: {"web-[1-9999]": }\n')
        with subprocess.Popen(
            [*QCTL, "inventory", "check", "-q"], cwd=work, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"HOST")
            process.stdout.close()
            stderr = process.stderr.read()
        assert (process.returncode, stderr) == (128 + signal.SIGPIPE, b"")


#: Nothing of these may be imported to print a help.
HEAVY = (
    "pika",
    "requests",
    "textual",
    "rich",
    "pydantic",
    "yaml",
    "sqlite3",
    "asyncio",
    "qctl.worker",
    "qctl.broker",
    "qctl.demo",
)


def modules_after(environ: dict[str, str], work: Path, *arguments: str) -> set[str]:
    """What a process has imported when the command is over."""
    program = (
        "import sys, json\nfrom qctl.cli.main import main\n"
        f"code = main({list(arguments)!r})\nprint(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=work, env=environ, capture_output=True, text=True, timeout=60
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    assert "Usage: qctl" in done.stdout
    return set(modules)


def test_the_help_imports_no_command(environ: dict[str, str], work: Path) -> None:
    modules = modules_after(environ, work, "--help")
    assert {name for name in modules if name.startswith("qctl.")} == {
        "qctl.cli", "qctl.cli.main", "qctl.cli.options", "qctl.cli.render",
        "qctl.errors", "qctl.inventory", "qctl.inventory.nearest", "qctl.units", "qctl.visible",
    }  # fmt: skip
    assert not modules & set(HEAVY)


@pytest.mark.parametrize("name", [entry.name for entry in COMMANDS])
def test_the_help_of_a_command_imports_nothing_heavy(environ: dict[str, str], work: Path, name: str) -> None:
    assert not modules_after(environ, work, name, "--help") & set(HEAVY)


def test_every_command_says_in_its_help_what_the_table_says_of_it(run: Run) -> None:
    listed = run("--help").stdout
    for entry in COMMANDS:
        assert re.search(rf"(?m)^  {entry.name} +{re.escape(entry.summary)}$", listed), entry.name


class TestTerminal:
    """Colour is for terminals, where nobody said no."""

    @staticmethod
    def on_terminal(work: Path, environ: dict[str, str], *arguments: str) -> str:
        main, secondary = pty.openpty()
        try:
            done = subprocess.Popen(
                [*QCTL, *arguments],
                cwd=work,
                env={"TERM": "xterm-256color", **environ},
                stdout=secondary,
                stderr=secondary,
            )
            os.close(secondary)
            output = b""
            while True:
                try:
                    chunk = os.read(main, 65_536)
                except OSError:  # Linux says EIO when the last writer has left
                    break
                if not chunk:
                    break
                output += chunk
            assert done.wait(30) == 0
        finally:
            os.close(main)
        return output.decode().replace("\r\n", "\n")

    def test_a_table_on_a_terminal_has_colour(self, work: Path, environ: dict[str, str], inventory: Path) -> None:
        output = self.on_terminal(work, environ, "inventory", "check")
        assert "\x1b[1m" in output
        assert "web-2" in output

    @pytest.mark.parametrize(
        ("extra", "arguments"), [({"NO_COLOR": "1"}, []), ({}, ["--no-color"]), ({"TERM": "dumb"}, [])]
    )
    def test_unless_somebody_said_no(
        self, work: Path, environ: dict[str, str], inventory: Path, extra: dict[str, str], arguments: list[str]
    ) -> None:
        output = self.on_terminal(work, {**environ, **extra}, "inventory", "check", *arguments)
        assert "\x1b" not in output
        assert "web-2" in output

    def test_machine_output_never_has(self, work: Path, environ: dict[str, str], inventory: Path) -> None:
        for form in ("json", "jsonl", "name"):
            assert "\x1b" not in self.on_terminal(work, environ, "inventory", "check", "-o", form)


class TestCompletion:
    """`qctl completion SHELL`, and what the script asks for then."""

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_script_of_a_shell(self, run: Run, shell: str) -> None:
        done = run("completion", shell)
        assert done.returncode == 0
        assert f"_QCTL_COMPLETE={shell}_complete" in done.stdout

    def test_the_bash_script_is_bash(self, run: Run, work: Path) -> None:
        script = work / "qctl.bash"
        script.write_text(run("completion", "bash").stdout)
        subprocess.run(["bash", "-n", str(script)], check=True)

    def ask(self, run: Run, line: str) -> list[str]:
        words = line.split(" ")
        env = {"_QCTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return [item.partition(",")[2] for item in run(env=env).stdout.split()]

    def test_commands_options_and_choices(self, run: Run) -> None:
        assert self.ask(run, "qctl in") == ["init", "inventory"]
        assert self.ask(run, "qctl inventory ") == ["check", "schema"]
        assert self.ask(run, "qctl completion ") == ["bash", "zsh", "fish"]
        assert self.ask(run, "qctl --out") == ["--output"]
        assert self.ask(run, "qctl -o js") == ["json", "jsonl"]

    @pytest.mark.parametrize(
        ("kind", "incomplete", "offered"),
        [
            ("host", "", ["web-1", "web-2"]),
            ("consumer", "t", ["timeline"]),
            ("quota", "", ["twitter"]),
            ("queue", "o", ["outbox"]),
            ("host_consumer", "web-1/", ["web-1/timeline", "web-1/mails"]),
            ("host_quota", "web-2", ["web-2/twitter"]),
            ("consumer_or_queue", "t", ["timeline"]),
            ("consumer_or_queue", "web-2", ["web-2/timeline"]),
            ("host", "x", []),
        ],
    )
    def test_names_of_the_inventory(self, inventory: Path, kind: str, incomplete: str, offered: list[str]) -> None:
        assert self.names(inventory, kind, incomplete) == offered

    def test_a_broken_inventory_offers_nothing_and_says_nothing(
        self, inventory: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        inventory.write_text("- no inventory")
        assert self.names(inventory, "host", "") == []
        assert capfd.readouterr() == ("", "")

    @staticmethod
    def names(inventory: Path, kind: str, incomplete: str) -> Any:
        import click

        from qctl.cli import completion
        from qctl.cli.options import Settings

        argument = click.Argument(["name"])
        context = click.Context(click.Command("x", params=[argument]), obj=Settings(inventory=inventory))
        return getattr(completion, kind)(context, argument, incomplete)
