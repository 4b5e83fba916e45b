"""Secrets: by reference, anew at each use, and in no message."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qctl.errors import InventoryError, SecretError
from qctl.inventory import secrets
from qctl.inventory.load import load
from qctl.inventory.model import Broker, Secret
from tests.unit.inventory.conftest import Load
from tests.unit.inventory.test_sample import MINIMAL

HIDDEN = "hunter2"


def resolve(secret: Secret | str, base: Path) -> str:
    return secrets.resolve(secret, what="broker.password", base=base)


def complaint(secret: Secret, base: Path) -> str:
    with pytest.raises(SecretError) as caught:
        resolve(secret, base)
    assert caught.value.message.startswith("broker.password: ")
    assert HIDDEN not in caught.value.message + caught.value.hint
    return caught.value.message


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{HIDDEN}\n")
    path.chmod(0o600)
    return path


def test_a_text_is_itself(tmp_path: Path) -> None:
    assert resolve("guest", tmp_path) == "guest"
    assert resolve(Secret("value", HIDDEN), tmp_path) == HIDDEN


def test_from_the_environment_anew_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("one", "two"):
        monkeypatch.setenv("RABBIT", value)
        assert resolve(Secret("env", "RABBIT"), tmp_path) == value


@pytest.mark.parametrize(("value", "state"), [(None, "is not set"), ("", "is empty")])
def test_a_variable_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, state: str
) -> None:
    monkeypatch.delenv("RABBIT", raising=False)
    if value is not None:
        monkeypatch.setenv("RABBIT", value)
    assert complaint(Secret("env", "RABBIT"), tmp_path) == f"broker.password: the environment variable RABBIT {state}"


def test_from_a_file_next_to_the_inventory_without_its_last_newline(secret_file: Path) -> None:
    assert resolve(Secret("file", "password"), secret_file.parent) == HIDDEN
    secret_file.write_text(f" {HIDDEN} \r\n")
    assert resolve(Secret("file", str(secret_file)), Path("/")) == f" {HIDDEN} "


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_file_that_others_may_use_is_refused(secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    assert f"(mode {mode:04o})" in complaint(Secret("file", "password"), secret_file.parent)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_its_owner_alone_is_read(secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    assert resolve(Secret("file", "password"), secret_file.parent) == HIDDEN


def test_files_that_hold_no_secret(tmp_path: Path) -> None:
    assert "no such file" in complaint(Secret("file", "nothing"), tmp_path)
    assert "is not a file" in complaint(Secret("file", "."), tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is not a file" in complaint(Secret("file", "pipe"), tmp_path)
    for name, content, what in (
        ("empty", b"\n", "is empty"),
        ("large", b"x" * (secrets.MAX_SECRET_BYTES + 1), "larger than 64 KiB"),
        ("binary", b"\xff\xfe", "not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
        assert what in complaint(Secret("file", name), tmp_path)


def test_from_a_command_run_next_to_the_inventory(tmp_path: Path, secret_file: Path) -> None:
    assert resolve(Secret("command", ("cat", "password")), tmp_path) == HIDDEN
    assert resolve(Secret("command", ("printf", "  %s \n\n", HIDDEN)), tmp_path) == HIDDEN


def test_commands_that_print_no_secret(tmp_path: Path) -> None:
    assert complaint(Secret("command", ("/nothing/here", HIDDEN)), tmp_path).endswith("no such file or directory")
    failing = Secret("command", ("sh", "-c", f"echo {HIDDEN}; echo {HIDDEN} >&2; exit 7"))
    assert complaint(failing, tmp_path) == "broker.password: sh ended with status 7"
    assert "is empty" in complaint(Secret("command", ("true",)), tmp_path)
    assert "larger than 64 KiB" in complaint(Secret("command", ("cat", "/dev/zero")), tmp_path)


def test_a_command_that_does_not_end_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a command that leaves its work to a child, and little patience
    monkeypatch.setattr(secrets, "COMMAND_TIMEOUT_S", 0.3)
    pid_file = tmp_path / "pid"
    command = Secret("command", ("sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"))

    # when it is waited for
    began = time.monotonic()
    assert "sh did not end within" in complaint(command, tmp_path)

    # then it ended soon, and the child with it: dead, or dead and not yet collected
    assert time.monotonic() - began < 10
    status = Path(f"/proc/{pid_file.read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child outlived its command"


class TestCredentials:
    """Whose name and password a connection uses."""

    BROKER = Broker(local=False, username="alice", password=Secret("env", "RABBIT"))

    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("QCTL_USERNAME", "QCTL_PASSWORD"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("RABBIT", "from-inventory")

    def test_the_inventory_says(self, tmp_path: Path) -> None:
        for prefer in (True, False):
            found = secrets.credentials(self.BROKER, base=tmp_path, prefer_environment=prefer)
            assert found == ("alice", "from-inventory")

    def test_commands_prefer_the_environment_and_workers_do_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("QCTL_USERNAME", "bob")
        monkeypatch.setenv("QCTL_PASSWORD", "mine")
        assert secrets.credentials(self.BROKER, base=tmp_path, prefer_environment=True) == ("bob", "mine")
        assert secrets.credentials(self.BROKER, base=tmp_path, prefer_environment=False) == ("alice", "from-inventory")

    def test_guest_is_the_default(self, tmp_path: Path) -> None:
        for broker in (Broker(local=True), Broker(local=False)):
            assert secrets.credentials(broker, base=tmp_path, prefer_environment=True) == ("guest", "guest")

    def test_a_user_without_a_password_is_told_so(self, tmp_path: Path) -> None:
        with pytest.raises(SecretError) as caught:
            secrets.credentials(Broker(local=False, username="alice"), base=tmp_path, prefer_environment=False)
        assert "password" in caught.value.message


def test_no_repr_shows_a_secret(read: Load) -> None:
    handler = f"{{http: {{base_url: http://api/, headers: {{X: {HIDDEN}, Y: {{value: {HIDDEN}}}}}}}}}"
    broker = f"{{amqp: 'amqp://r/', username: {{command: [x, {HIDDEN}]}}, password: {{value: {HIDDEN}}}}}"
    text = MINIMAL.replace("{python: 'app:run'}", handler).replace("broker: local", f"broker: {broker}")
    inventory = read(text)
    assert secrets.resolve(inventory.broker.password or "", what="x", base=inventory.base) == HIDDEN
    assert HIDDEN not in repr(inventory)


@pytest.mark.parametrize(
    "line",
    [
        f"broker: amqp://guest:{HIDDEN}@rabbit/",
        f"broker: {{amqp: 'amqp://guest:{HIDDEN}@rabbit/'}}",
        f"broker: {{amqp: 'amqp://{HIDDEN}@rabbit/'}}",
        f"broker: {{amqp: 'amqp://guest:{HIDDEN}/@rabbit/'}}",
        f"broker: {{amqp: 'guest:{HIDDEN}@rabbit'}}",
        f"broker: {{amqp: ['http://guest:{HIDDEN}@rabbit']}}",
        f"broker: {{amqp: {{'amqp://guest:{HIDDEN}@rabbit': 5672}}}}",
        f"broker: {{'amqp://guest:{HIDDEN}@rabbit': 5672}}",
        f"broker: {{amqp: 'amqp://r', 'amqp://guest:{HIDDEN}@rabbit': 1, 'amqp://guest:{HIDDEN}@rabbit': 1}}",
        f"broker: {{amqp: 'amqp://r', management: 'https://{HIDDEN}:x@rabbit'}}",
        f"broker: {{amqp: 'amqp://r', password: {HIDDEN}}}",
        f"broker: {{amqp: 'amqp://r', password: [{HIDDEN}]}}",
        f"broker: {{amqp: 'amqp://r', password: {{{HIDDEN}: }}}}",
        f"broker: {{amqp: 'amqp://r', password: {{valeu: {HIDDEN}}}}}",
        f"broker: {{amqp: 'amqp://r', password: {{env: '{HIDDEN}!'}}}}",
        f"broker: {{amqp: 'amqp://r', password: {{value: [{HIDDEN}]}}}}",
        f"broker: {{amqp: 'amqp://r', password: {{command: {HIDDEN}}}}}",
        f"broker: {{amqp: 'amqp://r', passwrod: {{value: {HIDDEN}}}}}",
        f"broker: {{amqp: 'amqp://r', password: *{HIDDEN}}}",
        f"broker: {{amqp: 'amqp://r', password: !{HIDDEN} x}}",
        f"broker: {{amqp: 'amqp://r', password: {{value: \"{HIDDEN}}}}}",
        f"broker: {{amqp: 'amqp://r', password: {{value: {HIDDEN}: x}}}}",
        f"broker: {{amqp: 'amqp://r', password: {{value: \"{HIDDEN}\\q\"}}}}",
        f"environment: production\nbroker: {{amqp: 'amqp://r', password: {{value: {HIDDEN}}}}}",
        f"broker: local\nworker: {{python_path: 'amqp://guest:{HIDDEN}@rabbit'}}",
        f"broker: local\nworker: {{hold_after: 'amqp://guest:{HIDDEN}@rabbit'}}",
        f"broker: local\nquotas: {{mail: 'http://guest:{HIDDEN}@api'}}",
        f"broker: local\nquotas: {{'http://guest:{HIDDEN}@api': 5/d}}",
        f"broker: local\nquotas: {{mail: {{limit: 3/m, urls: ['http://guest:{HIDDEN}@api']}}}}",
        f"broker: local\noperators: {{x: {HIDDEN}}}",
    ],
)
def test_no_message_shows_a_secret(file: Path, line: str) -> None:
    file.write_text(MINIMAL.replace("broker: local", line))
    with pytest.raises(InventoryError) as caught:
        load(file)
    said = "\n".join([caught.value.message, caught.value.hint, *caught.value.mistakes])
    assert caught.value.mistakes
    assert HIDDEN not in said
    assert "guest" not in said
    # nor does what Python would print of it
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
