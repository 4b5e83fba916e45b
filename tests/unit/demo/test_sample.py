"""The sample inventory: valid as it stands, and the same text in a run of the scenario."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qctl.demo import sample
from qctl.errors import QctlError
from qctl.inventory.load import load
from qctl.units import parse_rate

URLS = {"web-1": "http://127.0.0.1:40001/", "web-2": "http://127.0.0.1:40002/"}


def test_the_sample_is_a_valid_inventory_for_the_private_node_with_the_limits_that_the_api_enforces() -> None:
    inventory = load(sample.SAMPLE)

    assert inventory.broker.local
    assert {
        host.name: host.quotas[sample.QUOTA].limits
        for host in inventory.hosts.values()
        if sample.CONSUMER in host.consumers
    } == {host: (parse_rate(f"{units}/m"),) for host, units in sample.LIMITS.items()}


def test_the_sample_at_the_root_of_the_repository_is_the_one_that_the_demo_runs() -> None:
    root = Path(__file__).parents[3] / "inventory.yaml"

    assert root.resolve() == sample.SAMPLE.resolve()


def test_given_a_run_when_its_inventory_is_written_then_only_the_urls_and_the_windows_differ_from_the_sample(
    tmp_path: Path,
) -> None:
    path = tmp_path / "inventory.yaml"

    sample.write(path, URLS, sample.upstreams(20.0))

    changed = [
        (before, after)
        for before, after in zip(sample.SAMPLE.read_text().splitlines(), path.read_text().splitlines(), strict=True)
        if before != after
    ]
    assert len(changed) == 4
    for before, after in changed:
        assert re.sub(r"/20s|:4000\d", "", after) == re.sub(r"/m\b|:880\d", "", before)


def test_given_a_sample_edited_beyond_what_the_demo_expects_when_a_run_begins_then_the_error_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = tmp_path / "edited.yaml"
    edited.write_text(sample.SAMPLE.read_text().replace("200/m", "300/m"))
    monkeypatch.setattr(sample, "SAMPLE", edited)

    with pytest.raises(QctlError, match="web-1") as refused:
        sample.write(tmp_path / "inventory.yaml", URLS, sample.upstreams(60.0))

    assert str(edited) in refused.value.hint
