"""The API's reading of HTTP: whole requests only, in order, with bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.demo.request import MAX_BODY_BYTES, MAX_HEAD_BYTES, BadRequestError, Request, take

_TWO = (
    b"POST /users/17?task=t-1&x=2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    b"GET /a%20b?task=no HTTP/1.1\r\nX-Task-Id: t-2\r\nConnection: close\r\n\r\n"
)


@given(cuts=st.lists(st.integers(0, len(_TWO)), max_size=12).map(sorted))
def test_given_two_requests_in_any_pieces_when_taken_then_both_come_whole_and_in_order(cuts: list[int]) -> None:
    buffer, taken = bytearray(), []
    for start, end in zip([0, *cuts], [*cuts, len(_TWO)], strict=True):
        buffer += _TWO[start:end]
        while (request := take(buffer)) is not None:
            taken.append(request)

    assert taken == [
        Request(method="POST", path="/users/17", task="t-1", keep_alive=True),
        Request(method="GET", path="/a b", task="t-2", keep_alive=False),
    ]
    assert not buffer


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET /" + b"a" * MAX_HEAD_BYTES, 431),
        (b"GET /?" + b"a=1&" * 100 + b" HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_given_a_malformed_or_oversized_request_when_taken_then_it_is_refused_with_its_status(
    raw: bytes, status: int
) -> None:
    with pytest.raises(BadRequestError) as refused:
        take(bytearray(raw))

    assert refused.value.status == status


@given(st.binary(max_size=300))
def test_given_any_bytes_when_taken_then_there_is_a_request_a_refusal_or_a_wait_for_more(raw: bytes) -> None:
    buffer = bytearray(raw)
    refused = None
    request = None
    try:
        request = take(buffer)
    except BadRequestError as problem:
        refused = problem

    waits = request is None and refused is None
    assert bytes(buffer) == raw if waits else refused is None or refused.status in {400, 411, 413, 431}
