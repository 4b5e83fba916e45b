"""A broker user that a row may spoil: the workers of its scene log in as that one, the row's own tools as another."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.brokers import Vhost
from tests.fleet import Fleet

EVERYTHING = ".*"


class Account:
    """A user of one virtual host, with the file that workers read its password from."""

    def __init__(self, vhost: Vhost, secret: Path) -> None:
        self.name = f"worker-{secrets.token_hex(4)}"
        self.secret = secret
        self._vhost = vhost
        self.set_password("first")
        self.write_password("first")

    def set_password(self, password: str) -> None:
        """What the broker takes from now on; makes the user, with every right, when there is none."""
        self._vhost.broker.api("PUT", f"/users/{self.name}", {"password": password, "tags": ""})
        self.allow()

    def write_password(self, password: str) -> None:
        """What workers log in with from now on."""
        beside = self.secret.with_suffix(".new")
        beside.touch(mode=0o600)
        beside.write_text(password + "\n", encoding="utf-8")
        beside.replace(self.secret)

    def allow(self, *, configure: str = EVERYTHING, write: str = EVERYTHING, read: str = EVERYTHING) -> None:
        """Its permissions from now on, as regular expressions of names."""
        body = {"configure": configure, "write": write, "read": read}
        self._vhost.broker.api("PUT", f"/permissions/{self._vhost.name}/{self.name}", body)

    def delete(self) -> None:
        """There is no such user any more; the broker closes its connections."""
        self._vhost.broker.api("DELETE", f"/users/{self.name}")

    def use(self, fleet: Fleet) -> None:
        """Have the workers of a fleet that is staged and not started log in as this user."""
        path = fleet.directory / "inventory.yaml"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["broker"].update(username=self.name, password={"file": str(self.secret)})
        path.write_text(json.dumps(document), encoding="utf-8")


@contextmanager
def account(vhost: Vhost, directory: Path) -> Iterator[Account]:
    """A user for the time of the block."""
    found = Account(vhost, directory / "password")
    try:
        yield found
    finally:
        found.delete()
