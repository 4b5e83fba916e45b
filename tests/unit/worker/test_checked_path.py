"""A payload's path may not leave the base URL, however it is written and whoever reads it on the way."""

from __future__ import annotations

import posixpath
import unicodedata
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from qctl.broker.message import Malformed
from qctl.worker.handlers.http import MAX_PATH_CHARS, checked_path

BASE_URL = "https://api.example.com/1.1/"

#: Addresses of their own; harmless behind a first segment.
ADDRESSES = [
    "//evil.example/",
    "///evil.example/",
    "/%2fevil.example/",
    "%2f%2fevil.example/",
    "\uff0f\uff0fevil.example",
    "http://evil.example/",
    "/http://evil.example/",
    "HTTPS://evil.example/",
    "https:%2f%2fevil.example/",
    "//user@evil.example/",
    "//[::1",
]
ATTACKS = [
    # dots, plain
    "..",
    "../",
    "../admin",
    "/../admin",
    "/..",
    "users/../../admin",
    "users/..",
    "./../admin",
    "./users",
    "users/.",
    "users/./../..",
    ".../../admin",
    "...",
    "../?x=1",
    "..?x=1",
    # dots, encoded, once and more often
    "%2e%2e",
    "%2e%2e/admin",
    "%2E%2E%2Fadmin",
    ".%2e/admin",
    "%2e./admin",
    "users%2f..%2f..%2fadmin",
    "users/%2e%2e/%2e%2e/admin",
    "%252e%252e/admin",
    "%252e%252e%252fadmin",
    "%25252e%25252e%25252fadmin",
    "%2525252525252e",
    "users%3f%2f..%2f..%2fadmin",
    "users%23%2f..%2fadmin",
    # parameters that some servers cut off first
    "..;/admin",
    "..;x=y/admin",
    "users/..;/..;/admin",
    "%2e%2e;/admin",
    "..%3b/admin",
    # backslashes
    "..\\admin",
    "\\..\\admin",
    "\\\\evil.example",
    "..%5cadmin",
    "%5c%5cevil.example",
    "..%255cadmin",
    # what ends or splits a request
    "users#/../admin",
    "users\r\nHost: evil.example",
    "users%0d%0aHost:%20evil.example",
    "users\n",
    "users%00",
    "..%00/admin",
    "..%09/admin",
    "\tusers",
    "us ers",
    " ../admin",
    "..%20/admin",
    "%20../admin",
    "users?x=1\n",
    "users?x=\x7f",
    "users?x=1#y",
    # characters that become dots and slashes, or nothing
    "\uff0e\uff0e/admin",
    "\u2025/admin",
    "\u2026/admin",
    "..\uff0fadmin",
    "..\uff3cadmin",
    "\uff05\uff12\uff45%2e/admin",
    "%ef%bc%8e%ef%bc%8e/admin",
    "%c0%ae%c0%ae/admin",
    "%c0%ae%c0%ae%c0%afadmin",
    "%e0%80%ae/admin",
    "%u002e%u002e/admin",
    "..%u2215admin",
    "users/\ud800",
    "users?x=\ud800",
    "users/\x85..",
    "users/%zz",
    "users/%",
    "users/%2",
    # not a path at all
    "u" * (MAX_PATH_CHARS + 1),
    None,
    17,
    True,
    ["users"],
    {"path": "users"},
    b"users",
]

HARMLESS = [
    "",
    "/",
    "users",
    "/users",
    "/users/",
    "users/17/posts",
    "users//17",
    "users/a.b",
    "users/.hidden",
    "users/..hidden",
    "users/hidden..",
    "users/a..b",
    "users/;v=1/x",
    "users;v=1/x",
    "users:batch",
    "a:b/c",
    "@alice",
    "users/@alice",
    "group%2Fproject/issues",
    "files/my%20file.txt",
    "files/100%25",
    "files/%25E2%2582%25AC",
    "files/%E2%82%AC",
    "files/€",
    "files/%23hash",
    "files/a%3Fb",
    "web/2020/http://example.com/",
    "(x)/$metadata,'y'!*&=+",
    "~alice/-_.txt",
    "?",
    "?page=2",
    "users?page=2&sort=-name",
    "users?next=http://example.com/",
    "users?next=//example.com/../x",
    "users?q=a%20b%0Ac%2e%2e%2f",
    "users?q=100%",
    "users?email=a@b.example;x",
    "users?a?b",
    "u" * MAX_PATH_CHARS,
]


def stays_below(base_url: str, url: str) -> bool:
    """Whether a URL lies below the base, also for a server that decodes and normalises as often as it likes."""
    base, found = urlsplit(base_url), urlsplit(url)
    seen = found.path
    for _ in range(6):
        reading = unicodedata.normalize("NFKC", seen).replace("\\", "/")
        reading = "/".join(part.partition(";")[0].strip() for part in reading.split("/"))
        normal = posixpath.normpath(reading)
        if not (normal + "/").startswith(base.path):
            return False
        seen = unquote(seen)
    return (found.scheme, found.netloc) == (base.scheme, base.netloc) and not found.fragment


@pytest.mark.parametrize("path", ADDRESSES + ATTACKS, ids=lambda path: ascii(path)[:40])
def test_given_a_path_that_tries_to_leave_then_the_payload_is_malformed(path: object) -> None:
    with pytest.raises(Malformed, match=r"payload\.path"):
        checked_path(path)


@pytest.mark.parametrize("path", HARMLESS, ids=lambda path: ascii(path)[:40])
def test_given_a_harmless_path_then_it_is_taken_as_it_is_and_the_call_goes_below_the_base_url(path: str) -> None:
    assert checked_path(path) == path.removeprefix("/")

    url = requests.Request("GET", BASE_URL + checked_path(path)).prepare().url
    assert url is not None
    assert url.startswith(BASE_URL)
    assert stays_below(BASE_URL, url)


@pytest.mark.parametrize("path", [p for p in ATTACKS if isinstance(p, str)], ids=lambda path: ascii(path)[:40])
def test_given_an_attack_behind_a_harmless_beginning_then_it_is_refused_too(path: str) -> None:
    with pytest.raises(Malformed):
        checked_path("users/" + path)


tricky = st.lists(
    st.sampled_from(
        [
            *(
                "..",
                ".",
                "/",
                "\\",
                "%2e",
                "%2E",
                "%2f",
                "%5c",
                "%25",
                "%3b",
                "%3f",
                "%23",
                "%20",
                "%00",
                "%0a",
                "%c0%ae",
            ),
            *(
                ";",
                "?",
                "#",
                "@",
                ":",
                "//",
                "://",
                "http:",
                "evil.example",
                "a",
                "b",
                "é",
                "%",
                "2e",
                "u002e",
                " ",
                "\t",
            ),
            *("\uff0e", "\uff0f", "\uff05", "\u2025", "\u2215", "\u3002", "\u200b", "\u202e", "\ud800", "&x=1"),
        ]
    ),
    max_size=8,
).map("".join)


@given(tricky | st.text(max_size=40))
@example("x%3f%2f..%2f..%2fsecret")
@example("a%252f..%252f..")
def test_whatever_is_accepted_stays_below_the_base_url(path: str) -> None:
    try:
        accepted = checked_path(path)
    except Malformed:
        return

    url = BASE_URL + accepted
    assert stays_below(BASE_URL, url)
    assert urljoin(BASE_URL, url).startswith(BASE_URL)
    # The client that makes the call has its own opinion of what a URL means.
    prepared = requests.Request("GET", url).prepare().url
    assert prepared is not None
    assert prepared.startswith(BASE_URL)
    assert stays_below(BASE_URL, prepared)


@given(tricky | st.text(max_size=40))
def test_a_refusal_says_which_path_in_one_printable_line(path: str) -> None:
    try:
        checked_path(path)
    except Malformed as refused:
        assert len(str(refused).splitlines()) == 1
        assert str(refused).isprintable() or any(unicodedata.category(c) in ("Cf", "Zs", "Co", "Cn") for c in path)
