"""What may be configured, and what is refused with a reason."""

from __future__ import annotations

import dataclasses
import math

import pytest

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    ClientMigration,
    MigrationAddress,
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
)

POOL = tuple(MigrationAddress.of(Address.parse(f"192.0.2.{n}:4433")) for n in range(1, 34))


def test_defaults() -> None:
    client, server = ClientMigration(), ServerMigration()
    assert client.protocols == server.protocols == ALL_PROTOCOLS
    assert (client.policy, client.scheduler) == (Policy.EAGER, Scheduler.PARALLEL)
    assert server.pool == ()


def test_names() -> None:
    assert [policy.value for policy in Policy] == ["reactive", "proactive", "eager"]
    assert [scheduler.value for scheduler in Scheduler] == ["cyclic", "random", "parallel"]


@pytest.mark.parametrize("options", [ClientMigration(), ServerMigration()])
def test_frozen(options: ClientMigration | ServerMigration) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.probe_interval = 1  # type: ignore[misc]  # the point of it


def test_client_offers_something() -> None:
    with pytest.raises(ValueError, match="at least one protocol"):
        ClientMigration(protocols=MigrationProtocol(0))


def test_server_may_support_nothing() -> None:
    """It answers 0 then, which tells the client more than silence."""
    assert ServerMigration(protocols=MigrationProtocol(0)).protocols == 0


@pytest.mark.parametrize("interval", [0, -1, 0.0009, 10.01, math.inf, math.nan])
@pytest.mark.parametrize("options", [ClientMigration, ServerMigration])
def test_probe_interval_is_bounded(
    options: type[ClientMigration] | type[ServerMigration], interval: float
) -> None:
    with pytest.raises(ValueError, match=r"between 0\.001 and 10 seconds"):
        options(probe_interval=interval)


@pytest.mark.parametrize("interval", [0.001, 0.04, 10])
def test_probe_intervals(interval: float) -> None:
    assert ClientMigration(probe_interval=interval).probe_interval == interval


@pytest.mark.parametrize("pool", [POOL[:1] * 2, (MigrationAddress(),)], ids=["twice", "unknown"])
def test_pool_has_each_address_once(pool: tuple[MigrationAddress, ...]) -> None:
    with pytest.raises(ValueError, match="pool"):
        ServerMigration(pool=pool)


def test_pool_size() -> None:
    assert len(ServerMigration(pool=POOL[:32]).pool) == 32
    with pytest.raises(ValueError, match="at most 32"):
        ServerMigration(pool=POOL)
