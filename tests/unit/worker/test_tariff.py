"""Which quota pays for a call."""

from __future__ import annotations

import pytest

from qctl.worker.tariff import tariff

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
