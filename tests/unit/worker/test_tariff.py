"""Which quota pays for a call."""

from __future__ import annotations

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from qctl.inventory.model import Quota, Rate, Window
from qctl.units import NS_PER_S
from qctl.worker.tariff import normal, tariff, tariff_of

URLS = {"search": ("https://api.example.com/1.1/search",), "rest": ("https://api.example.com/", "http://10.0.0.7:8080")}


def test_given_one_quota_without_urls_then_it_pays_for_every_call() -> None:
    rates = tariff({"api": 1}, {}, {})

    assert rates.quota_of("https://anything.example/x") == "api"


def test_given_no_quota_then_calls_cost_nothing() -> None:
    assert tariff({}, URLS, {}).quota_of("https://api.example.com/") is None


def test_given_urls_then_the_longest_prefix_pays_and_other_calls_cost_nothing() -> None:
    rates = tariff({"rest": 1, "search": 1}, URLS, {})

    assert rates.quota_of("https://api.example.com/1.1/search?q=x") == "search"
    assert rates.quota_of("https://api.example.com/1.1/users") == "rest"
    assert rates.quota_of("http://10.0.0.7:8080/x") == "rest"
    assert rates.quota_of("https://elsewhere.example/") is None


def test_given_several_quotas_then_the_one_without_urls_takes_what_no_other_claims() -> None:
    rates = tariff({"search": 1, "other": 1}, URLS, {})

    assert rates.quota_of("https://api.example.com/1.1/search") == "search"
    assert rates.quota_of("https://api.example.com/1.1/users") == "other"


def test_given_a_quota_that_the_consumer_does_not_name_then_its_urls_do_not_count() -> None:
    assert tariff({"search": 1}, URLS, {}).quota_of("http://10.0.0.7:8080/x") is None


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com",
        "https://api.example.com/",
        "https://api.example.com:443/users",
        "HTTPS://API.Example.com/users",
        "https://user:secret@api.example.com/users",
        "https://api.example.com./users",
        "https://api.example.com?q=1",
        "https://api.example.com/users#part",
    ],
)
def test_given_another_spelling_of_the_same_server_then_its_quota_pays_all_the_same(url: str) -> None:
    assert tariff({"rest": 1}, URLS, {}).quota_of(url) == "rest"


def test_given_a_paced_quota_then_no_more_than_its_burst_can_ever_be_paid_at_once() -> None:
    rate = (Rate(100, 3600 * NS_PER_S),)
    quotas = {"slow": Quota("slow", rate, Window.PACED, burst=4), "fast": Quota("fast", rate)}

    assert tariff_of({"slow": 1}, quotas).most == {"slow": 4, "fast": 100}


#: As `urls`, and as a client sends a call of it.
SPELLINGS = [
    ("https://h/%7Euser/", "https://h/~user/a"),
    ("https://h/~user/", "https://h/%7euser/a"),
    ("https://h/a/../v1/", "https://h/v1/b"),
    ("https://h/v1/", "https://h/./x/../v1/b"),
    ("https://h/v1/", "https://h/x/%2e%2E/v1/b"),
    ("https://h/v1/", "https://h//v1///b"),
    ("https://h/v1/", "https://h/../v1/b"),
    ("https://h/%c3%a9/", "https://h/%C3%A9/c"),
    ("https://h/%c3%a9/", "https://h/\u00e9/c"),
    ("https://h/v1|x/", "https://h/v1%7Cx/c"),
    ("https://h/a%20b/", "https://h/a b/c"),
    ("https://h/a(b)/", "https://h/a%28b%29/c"),
    ("https://h/a%zz/", "https://h/a%25zz/c"),
    ("https://h/v1/..", "https://h/x"),
    ("https://h/v1/.", "https://h/v1/x"),
    ("https://h/v1?kind=a", "https://h/v1/x"),
]


@pytest.mark.parametrize(("written", "called"), SPELLINGS)
def test_given_another_spelling_of_the_same_path_then_its_quota_pays_all_the_same(written: str, called: str) -> None:
    rates = tariff({"api": 1}, {"api": (written,)}, {})

    assert rates.quota_of(called) == "api"
    # as it was written, and as clients make it before they send it
    assert rates.quota_of(written) == "api"
    assert rates.quota_of(requests.Request("GET", called).prepare().url or "") == "api"
    assert rates.quota_of(str(URL(called))) == "api"


@pytest.mark.parametrize(
    "path", ["v1%2Fx", "v1%2Fx/y", "v1", "v2/", "V1/", "v1%252F", "x/v1/", "v1/../", "v1/..", "v1/%2e%2e/"]
)
def test_given_another_path_then_the_quota_does_not_pay(path: str) -> None:
    assert tariff({"api": 1}, {"api": ("https://h/v1/",)}, {}).quota_of(f"https://h/{path}") is None


@given(st.text(max_size=40), st.text(max_size=10))
def test_given_any_path_then_there_is_one_spelling_and_what_is_under_it_is_under_that(path: str, more: str) -> None:
    url = normal(f"https://h/{path}")

    assert normal(url) == url
    if "#" not in path and "?" not in path and url.endswith("/"):
        assert normal(f"https://h/{path}/x").startswith(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/",
        "https://api.example.com:8443/",
        "https://api.example.com.evil.example/",
        "https://evil.example/https://api.example.com/",
        "https://api.example.com@evil.example/",
        "http://10.0.0.7:80800/",
        "https://[::1",
        "",
    ],
)
def test_given_another_server_then_the_quota_does_not_pay(url: str) -> None:
    assert tariff({"rest": 1}, URLS, {}).quota_of(url) is None
