"""Finding and opening the file: one clear sentence for everything that is not an inventory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qctl.errors import InventoryError
from qctl.inventory.load import MAX_FILE_BYTES, find, load
from qctl.inventory.yaml_marks import MAX_DEPTH
from tests.unit.inventory.conftest import Mistakes
from tests.unit.inventory.test_sample import MINIMAL


def complaint(path: Path) -> str:
    with pytest.raises(InventoryError) as caught:
        load(path)
    assert caught.value.hint
    return caught.value.message


def test_a_missing_file(file: Path) -> None:
    assert complaint(file) == f"there is no inventory {file}"


def test_a_directory(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path} is a directory, not a file"


def test_a_device() -> None:
    assert complaint(Path("/dev/null")) == "/dev/null is not a file"


def test_a_path_through_a_file(file: Path) -> None:
    file.write_text(MINIMAL)
    assert "cannot read the inventory" in complaint(file / "x")


def test_a_path_that_cannot_be() -> None:
    assert "cannot read the inventory" in complaint(Path("a\0b"))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert complaint(file) == f"{file} is empty"


@pytest.mark.parametrize("content", [b"# nothing yet\n", b"---\n", b"null\n"])
def test_a_file_with_nothing_in_it(file: Path, mistakes: Mistakes, content: bytes) -> None:
    (message,) = mistakes(content.decode())
    assert message == "1:1: expected a mapping with version, broker, consumers and hosts, found nothing"


@pytest.mark.parametrize(("content", "found"), [("- a\n", "a list"), ("version\n", "'version'")])
def test_something_else_at_the_top(mistakes: Mistakes, content: str, found: str) -> None:
    (message,) = mistakes(content)
    assert message.endswith(f"found {found}")


def test_a_file_in_another_encoding(file: Path) -> None:
    file.write_bytes(MINIMAL.encode() + "# Grüße\n".encode("latin-1"))
    assert complaint(file) == f"{file}:6: the file is not UTF-8 text"


def test_a_file_in_utf_16(file: Path) -> None:
    file.write_text(MINIMAL, encoding="utf-16")
    assert "not UTF-8" in complaint(file)


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert list(load(file).hosts) == ["web-1"]


def test_windows_lines_are_no_mistake(file: Path) -> None:
    file.write_bytes(MINIMAL.replace("\n", "\r\n").encode())
    assert list(load(file).hosts) == ["web-1"]


def test_a_file_of_1_mib_is_read_and_no_larger_one(file: Path) -> None:
    body = MINIMAL.encode()
    file.write_bytes(body + b"#" * (MAX_FILE_BYTES - len(body)))
    assert list(load(file).hosts) == ["web-1"]
    file.write_bytes(body + b"#" * (MAX_FILE_BYTES - len(body) + 1))
    assert complaint(file) == f"{file} is larger than 1 MiB"


def test_a_pipe_can_be_an_inventory(tmp_path: Path) -> None:
    # given what a shell makes of -i <(command)
    reading, writing = os.pipe()
    os.write(writing, MINIMAL.encode())
    os.close(writing)
    try:
        assert list(load(Path(f"/dev/fd/{reading}")).hosts) == ["web-1"]
    finally:
        os.close(reading)


def test_a_bomb_of_aliases_is_refused_at_once(mistakes: Mistakes) -> None:
    # given ten levels of ten aliases each: 10^10 values in a kilobyte
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    (message,) = mistakes("\n".join(lines))
    assert "aliases expand to more than 600,000 values" in message


def test_a_tower_of_brackets_is_refused(mistakes: Mistakes) -> None:
    (message,) = mistakes("x: " + "[" * 100_000)
    assert f"nested deeper than {MAX_DEPTH} levels" in message


def test_thousands_of_mistakes_are_not_all_shown(mistakes: Mistakes) -> None:
    assert len(mistakes(MINIMAL + "".join(f"key-{n}: 1\n" for n in range(5_000)))) == 1_000


def test_all_mistakes_come_in_one_pass_in_order(mistakes: Mistakes) -> None:
    # given mistakes of YAML, of form, of names and of reference
    text = """\
version: 1
broker: local
quotas: {mail: 5/x, mail: 5/d}
consumers:
  timeline: {handler: {exec: [cat]}, quota: {mial: 1}, timeout: 5}
  timeline2: {handler: {exec: [cat]}, quota: {}, queue: qctl.x}
hosts:
  web-1: {group: large}
  "web-[1-2]": {consumers: {timelin: , timeline: {queue: y}}}
"""
    places = [message.split(": ")[:2] for message in mistakes(text)]
    assert places == [
        ["3:16", "quotas.mail"],
        ["3:21", "quotas.mail"],
        ["5:46", "consumers.timeline.quota.mial"],
        ["5:65", "consumers.timeline.timeout"],
        ["6:57", "consumers.timeline2.queue"],
        ["8:18", "hosts.web-1.group"],
        ["9:3", "hosts.web-[1-2]"],
        ["9:29", "hosts.web-[1-2].consumers.timelin"],
        ["9:51", "hosts.web-[1-2].consumers.timeline.queue"],
    ]


def test_a_mistake_in_an_entry_does_not_make_others_of_those_who_name_it(mistakes: Mistakes) -> None:
    text = MINIMAL.replace("quota: {}}", "quota: {mail: 1}}").replace("hosts:", "quotas: {mail: []}\nhosts:")
    (message,) = mistakes(text)
    assert "quotas.mail: " in message


class TestFind:
    """-i, $QCTL_INVENTORY, ./inventory.yaml, ~/.config/qctl/inventory.yaml, in this order."""

    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        work, home = tmp_path / "work", tmp_path / "home"
        work.mkdir()
        (home / ".config/qctl").mkdir(parents=True)
        monkeypatch.chdir(work)
        return home

    def test_each_place_comes_before_the_next(self, home: Path) -> None:
        environ = {"HOME": str(home)}
        in_home = home / ".config/qctl/inventory.yaml"
        in_home.write_text(MINIMAL)
        assert find(None, environ) == in_home
        Path("inventory.yaml").write_text(MINIMAL)
        assert find(None, environ) == Path("inventory.yaml")
        environ["QCTL_INVENTORY"] = "other.yaml"
        assert find(None, environ) == Path("other.yaml")
        assert find(Path("mine.yaml"), environ) == Path("mine.yaml")

    def test_an_empty_variable_is_not_set(self, home: Path) -> None:
        Path("inventory.yaml").write_text(MINIMAL)
        assert find(None, {"QCTL_INVENTORY": ""}) == Path("inventory.yaml")

    def test_none_anywhere_says_where_it_looked(self, home: Path) -> None:
        with pytest.raises(InventoryError) as caught:
            find(None, {"HOME": str(home)})
        assert "./inventory.yaml" in caught.value.message
        assert str(home / ".config/qctl/inventory.yaml") in caught.value.message
        assert "qctl init" in caught.value.hint
