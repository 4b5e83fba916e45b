"""Who commands: the login of this inventory's broker, checked to be one that workers would obey."""

from __future__ import annotations

from qctl.broker.connect import Login
from qctl.broker.login import login_for
from qctl.broker.management import Api, api_of
from qctl.inventory.model import Inventory
from qctl.ops.pausing import check_operator


def operator(inventory: Inventory) -> tuple[Login, Api | None]:
    """The login of somebody who may command, and the management API where there is one.

    Blocks where a secret is a command's. Raises SecretError, BrokerRefused for who may not, and BrokerUnreachable when
    the private node is not running.
    """
    login = login_for(inventory.broker, inventory.path, prefer_environment=True)
    check_operator(inventory, login.username)
    return login, api_of(inventory.broker, inventory.path, login)
