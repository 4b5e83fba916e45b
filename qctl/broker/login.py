"""Who connects and where to, from the inventory; read anew at each connect, so that a rotated password is picked up."""

from __future__ import annotations

from pathlib import Path

from qctl.broker.connect import Login
from qctl.broker.local import local_directory, running_node
from qctl.inventory.model import Broker, Endpoint
from qctl.inventory.secrets import credentials


def login_for(broker: Broker, inventory_path: Path, *, prefer_environment: bool) -> Login:
    """The login of an inventory's broker; of the private node when it says `broker: local`.

    prefer_environment: $QCTL_USERNAME and $QCTL_PASSWORD win, as for commands. Raises SecretError, and
    BrokerUnreachable when the private node is not running.
    """
    if broker.local:
        node = running_node(local_directory(inventory_path))
        return Login((Endpoint("127.0.0.1", node.amqp_port, False, "/"),), node.username, node.password)
    username, password = credentials(broker, base=inventory_path.parent, prefer_environment=prefer_environment)
    tls = broker.tls
    files = (tls.ca_file, tls.cert_file, tls.key_file) if tls else (None, None, None)
    ca_file, cert_file, key_file = (str(path) if path else None for path in files)
    return Login(broker.amqp, username, password, ca_file, cert_file, key_file)
