from __future__ import annotations

import json
from pathlib import Path

import pytest
from quicferry_lab.demo.settings import (
    PROTOCOL_NAMES,
    Settings,
    WorkerSettings,
    share_among_workers,
)
from quicferry_lab.emulation import PathSpec


def test_mixed_has_every_protocol_and_one_client_without() -> None:
    protocols = [plan.protocol for plan in Settings(protocol="mixed", clients=9).plans()]
    assert protocols == [*PROTOCOL_NAMES, *PROTOCOL_NAMES, "none"]


def test_one_protocol_for_all() -> None:
    plans = Settings(protocol="symmetric", clients=3).plans()
    assert [plan.protocol for plan in plans] == ["symmetric"] * 3
    assert len({plan.seed for plan in plans}) == 3


@pytest.mark.parametrize(("round_trips", "relocations"), [(0, 1), (1, 2), (3, 6)])
def test_round_trips(round_trips: int, relocations: int) -> None:
    assert Settings(round_trips=round_trips).relocations == relocations


@pytest.mark.parametrize("clients", [1, 2, 5, 40])
def test_every_client_has_one_worker(clients: int) -> None:
    plans = Settings(protocol="explicit", clients=clients).plans()
    shares = share_among_workers(plans)
    assert sorted(plan.id for share in shares for plan in share) == list(range(1, clients + 1))
    assert 1 <= len(shares) <= 4
    assert all(shares)


def test_worker_settings_survive_the_way_between_processes(tmp_path: Path) -> None:
    settings = WorkerSettings(
        server="127.0.0.1:4433",
        ca_file=str(tmp_path / "ca.pem"),
        clients=tuple(Settings().plans()),
        paths={"127.0.0.1:4433": PathSpec(rtt_ms=18, rate_mbit=20.0, seed=3)},
        scheduler="parallel",
    )
    assert WorkerSettings.decode(json.loads(json.dumps(settings.encode()))) == settings
