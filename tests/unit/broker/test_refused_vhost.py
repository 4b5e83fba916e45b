"""A virtual host that takes no connection says why: no permission, no such host, or no room."""

from __future__ import annotations

import pika.exceptions
import pytest

from qctl.broker.connect import Login, _translate
from qctl.inventory.model import Endpoint


@pytest.mark.parametrize(
    "error",
    [
        pika.exceptions.ProbableAccessDeniedError(
            repr(pika.exceptions.ConnectionClosedByBroker(530, "NOT_ALLOWED - connection limit (1) is reached"))
        ),
        pika.exceptions.ConnectionClosedByBroker(530, "NOT_ALLOWED - connection limit (1) is reached"),
    ],
)
def test_the_broker_s_own_words_are_said(error: Exception) -> None:
    address = Endpoint("127.0.0.1", 5672, False, "work")

    refused = _translate(error, Login((address,), "worker", "secret"), address)

    assert refused.message.endswith(
        "refused user 'worker' access to virtual host 'work': connection limit (1) is reached"
    )
