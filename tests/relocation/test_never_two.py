"""Whatever fails in a handover: never do two servers live with one connection.

Every fault strikes before every step of the two ends, and before every second one once more while
all messages come again at the worst of times; every message is lost, late, or much too late; and
seeds draw several of these things at once. `handing_over` says what is checked all the time. In the
end it has to be decided who owns the connection, and its owner serves it. Where the source does,
another handover succeeds, although messages of the first still come.

That these checks find something is shown by flaws in the design, one by one.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest
from quicferry_lab.simulation import Answer, Exchange, InvariantError, SimulatedAddress
from relocation.handing_over import LONG, PAUSE, Fault, Plan, World
from simulated_pair import AWAY, HOME, Pair, pair

from quicferry.protocol import ClientMigration, MigrationProtocol, Policy
from quicferry.protocol.table import Step, Table
from quicferry.relocation.ownership import destination, source
from quicferry.relocation.ownership.destination import HOLD
from quicferry.relocation.ownership.history import History
from quicferry.relocation.ownership.source import LEASE, State

RESERVED = 32
"""Packet numbers, few enough for copies to come to the end of them."""
TRAFFIC = (Exchange(1_000, 15_000, answer=Answer.AT_ONCE),)
MUCH = Exchange(100, 100_000)
"""More than the packets that are reserved."""
NO_HURRY = ClientMigration(probe_interval=1.0)
STEPS, MESSAGES = 46, 11
"""Of a handover in which nothing goes wrong."""
COMMITTED = 9
"""The number of this message then."""
ECHOES = (0.3, 7.0, 22.0)
"""Seconds: during the next handover, in doubt, and after the lease."""
SEEDS = 120

LASTING = (Fault.CRASH_DESTINATION, Fault.CUT, Fault.STOP_SOURCE, Fault.STOP_DESTINATION)
"""Faults that can keep the source in doubt until its lease is over."""
DEADLY = (Fault.CRASH_SOURCE, Fault.CRASH_DESTINATION, Fault.RESTART_DESTINATION)


class Served(enum.Enum):
    """Who has the connection in the end."""

    BY_SOURCE = enum.auto()
    BY_COPY = enum.auto()
    BY_STALE_SOURCE = enum.auto()
    """Its copy has lived, and has died: what that one and the client have said is lost."""
    BY_NOBODY = enum.auto()


@pytest.fixture(autouse=True)
def few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicferry.transport.snapshot.standstill.RESERVED_NUMBERS", RESERVED)


def play(
    plan: Plan,
    *,
    seed: int = 0,
    traffic: tuple[Exchange, ...] = TRAFFIC,
    client: ClientMigration = NO_HURRY,
) -> tuple[Served, World]:
    """Hand the connection over; return who served it then, and the world in the end."""
    with pair(seed, client=client) as it:
        world = World(it, plan)
        try:
            served = hand_over(it, world, traffic)
            if plan.echoes:
                if served is Served.BY_SOURCE:
                    assert hand_over(it, world, ()) is Served.BY_COPY
                it.network.run_for(max(plan.echoes) + PAUSE)
                if served_by(world) is Served.BY_COPY:
                    serve(it, AWAY)
        except BaseException as exc:
            exc.add_note(f"seed {seed}, {plan}")
            raise
    return served, world


def hand_over(it: Pair, world: World, traffic: tuple[Exchange, ...]) -> Served:
    it.imminent(MigrationProtocol.EXPLICIT, AWAY)
    it.requests.start([traffic])
    it.network.run_for(0.02)
    world.begin()
    it.network.run_for(max((when for when, _ in world.plan.later), default=0.0) + 0.5)
    it.network.run_until(lambda: world.is_decided, limit=LONG + HOLD, what="a decision")
    served = served_by(world)
    check_end(served, world)
    world.recover()
    if served in (Served.BY_SOURCE, Served.BY_COPY):
        serve(it, HOME if served is Served.BY_SOURCE else AWAY)
    else:
        it.network.run_for(PAUSE)
    return served


def served_by(world: World) -> Served:
    has_source = world.source.alive and not world.source.is_silent
    has_copy = world.agent.alive and world.agent.owner() is not None
    if has_source and has_copy:
        raise InvariantError("the source and a copy live")
    if has_source:
        return Served.BY_STALE_SOURCE if world.has_lived else Served.BY_SOURCE
    return Served.BY_COPY if has_copy else Served.BY_NOBODY


def serve(it: Pair, place: SimulatedAddress) -> None:
    it.requests.start([[Exchange(100, 100)]])
    it.network.run_until(lambda: it.requests.done, limit=60, what="the exchanges")
    assert it.client.connection.get_peer_address() == place


def check_end(served: Served, world: World) -> None:
    """Everybody is where the machine of the source says, and nobody is lost without need."""
    machine = world.source.machine
    assert machine.has_ended or not world.source.alive
    if not world.source.alive:
        assert (served is Served.BY_COPY) == (world.has_lived and not world.has_restarted)
    elif machine.state is State.BACK:
        assert served is (Served.BY_STALE_SOURCE if world.has_lived else Served.BY_SOURCE)
        assert machine.reason
    elif served is Served.BY_NOBODY:
        assert machine.state is State.GIVEN_UP or world.has_restarted


# Nothing, and one fault


@pytest.mark.parametrize("echoes", [(), ECHOES])
def test_nothing_fails(echoes: tuple[float, ...]) -> None:
    served, world = play(Plan(echoes=echoes))
    assert served is Served.BY_COPY
    assert world.source.silence < 0.1
    if not echoes:
        assert (world.steps, len(world.messages)) == (STEPS, MESSAGES)
        assert world.messages[COMMITTED] == "Committed"


@pytest.mark.parametrize("echoes", [(), ECHOES], ids=["", "echoes"])
@pytest.mark.parametrize("fault", Fault)
def test_a_fault_before_every_step(fault: Fault, echoes: tuple[float, ...]) -> None:
    ends = set()
    for step in range(0, STEPS, 2 if echoes else 1):
        served, world = play(Plan({step: fault}, echoes=echoes))
        state = world.handovers[0].state
        ends.add(served)
        if fault not in (*LASTING, Fault.CRASH_SOURCE):
            assert state in (State.BACK, State.GONE)
        if fault not in (*LASTING, *DEADLY):
            assert served in (Served.BY_SOURCE, Served.BY_COPY)
        if fault is Fault.ABORT:
            assert (state is State.BACK) == world.aborted_in_time
        if fault in (Fault.PAUSE_SOURCE, Fault.PAUSE_DESTINATION):
            assert served is Served.BY_COPY
        if fault is not Fault.STOP_SOURCE:
            assert world.source.silence <= LEASE + PAUSE
    if fault not in (Fault.CRASH_SOURCE, Fault.PAUSE_SOURCE, Fault.PAUSE_DESTINATION):
        assert ends >= {Served.BY_SOURCE}
    if fault is Fault.RESTART_DESTINATION:
        assert ends >= {Served.BY_STALE_SOURCE}


@pytest.mark.parametrize("late", [None, 0.1, 5.0, 25.0])
@pytest.mark.parametrize("echoes", [(), ECHOES], ids=["", "echoes"])
def test_every_message_lost_or_late(late: float | None, echoes: tuple[float, ...]) -> None:
    for number in range(MESSAGES):
        play(Plan(fates={number: late}, echoes=echoes))


# Several


def draw(rng: random.Random) -> Plan:
    faults = list(Fault)
    return Plan(
        faults={rng.randrange(3 * STEPS): rng.choice(faults) for _ in range(rng.randrange(3))},
        fates={
            rng.randrange(2 * MESSAGES): rng.choice((None, 0.01, rng.uniform(0, 30)))
            for _ in range(rng.randrange(3))
        },
        echoes=tuple(rng.uniform(0, 30) for _ in range(rng.randrange(3))),
        later=tuple((rng.uniform(0, 25), rng.choice(faults)) for _ in range(rng.randrange(3))),
    )


@pytest.mark.parametrize("block", range(4))
def test_several_faults(block: int) -> None:
    for seed in range(block, SEEDS, 4):
        rng = random.Random(f"never two {seed}")
        traffic = (*TRAFFIC, Exchange(100, 20_000, pause=rng.uniform(0, 10)))
        client = ClientMigration(policy=rng.choice(list(Policy)), probe_interval=1.0)
        play(draw(rng), seed=seed, traffic=traffic, client=client)


# Flaws that must be found

NO_ANSWER = Plan(fates={COMMITTED: None}, later=((3, Fault.RESTART_DESTINATION),))
NO_ANSWER_FOR_LONG = Plan(fates={COMMITTED: None}, later=((25, Fault.RESTART_DESTINATION),))
NO_ANSWER_BUT_ECHOES = Plan(fates={COMMITTED: None}, echoes=(7.0,))
SPECIAL = (NO_ANSWER, NO_ANSWER_FOR_LONG, NO_ANSWER_BUT_ECHOES)
MUCH_TRAFFIC = (MUCH, Exchange(100, 100_000, pause=22))


BESIDE, TWICE = "sent beside a", "twice with one key"


def at_every_step(fault: Fault, *echoes: float) -> list[Plan]:
    return [Plan({step: fault}, echoes=echoes) for step in range(STEPS)]


def change(table: Table[Any, Any, Any], cell: tuple[Any, Any], step: Step[Any, Any]) -> Any:
    """The table with another step in one cell."""
    state, received = cell
    assert table[cell] != step
    cells = {**table, cell: step}
    rows = [((s,), (i,), step.state, step.actions) for (s, i), step in cells.items()]
    return Table(type(state), type(received), rows)


def sweep(plans: Iterable[Plan]) -> None:
    for plan in plans:
        play(plan, traffic=MUCH_TRAFFIC if plan in SPECIAL else TRAFFIC)


def test_the_plans_that_find_flaws_find_none_in_the_design() -> None:
    sweep(SPECIAL)


_S, _SI, _SD = source.State, source.Input, source.Do
_D, _DI, _DD = destination.State, destination.Input, destination.Do


@pytest.mark.parametrize(
    ("module", "cell", "step", "plans", "violation"),
    [
        pytest.param(
            source,
            (_S.IN_DOUBT, _SI.LINK_LOST),
            Step(_S.BACK, (_SD.RESUME,)),
            at_every_step(Fault.LOSE_LINK),
            BESIDE,
            id="the source takes a lost link for a no",
        ),
        pytest.param(
            source,
            (_S.IN_DOUBT, _SI.ABORT),
            Step(_S.BACK, (_SD.RESUME, _SD.SEND_ABORT)),
            at_every_step(Fault.ABORT),
            BESIDE,
            id="the source aborts in doubt",
        ),
        pytest.param(
            source,
            (_S.IN_DOUBT, _SI.HELD),
            Step(_S.BACK, (_SD.RESUME,)),
            at_every_step(Fault.LOSE_LINK, 7.0),
            BESIDE,
            id="the source does not insist",
        ),
        pytest.param(
            source,
            (_S.IN_DOUBT, _SI.LEASE_OVER),
            Step(_S.IN_DOUBT),
            [NO_ANSWER_FOR_LONG],
            TWICE,
            id="the source has no lease",
        ),
        pytest.param(
            source,
            (_S.IN_DOUBT, _SI.LEASE_OVER),
            Step(_S.BACK, (_SD.RESUME,)),
            at_every_step(Fault.CUT),
            BESIDE,
            id="the source goes on after its lease",
        ),
        pytest.param(
            destination,
            (_D.PREPARING, _DI.SWITCHED),
            Step(_D.OWNED, (_DD.ACTIVATE, _DD.SEND_SWITCHED)),
            at_every_step(Fault.ABORT),
            BESIDE,
            id="the copies live before the commitment",
        ),
        pytest.param(
            destination,
            (_D.HELD, _DI.COMMIT),
            Step(_D.SETTLED, (_DD.ACTIVATE, _DD.LIFT, _DD.SEND_COMMITTED)),
            [NO_ANSWER],
            TWICE,
            id="the copies have no limit",
        ),
        pytest.param(
            destination,
            (_D.HELD, _DI.LEASE_OVER),
            Step(_D.OWNED, (_DD.ACTIVATE,)),
            at_every_step(Fault.CUT),
            BESIDE,
            id="the destination takes silence for a commitment",
        ),
        pytest.param(
            destination,
            (_D.HELD, _DI.ASK),
            Step(_D.HELD, (_DD.SEND_NO_COPY,)),
            at_every_step(Fault.LOSE_LINK, 7.0),
            BESIDE,
            id="the destination says no and keeps its copies",
        ),
        pytest.param(
            destination,
            (_D.OWNED, _DI.ASK),
            Step(_D.OWNED, (_DD.SEND_NO_COPY,)),
            at_every_step(Fault.LOSE_LINK),
            BESIDE,
            id="the destination denies what it owns",
        ),
        pytest.param(
            destination,
            (_D.OWNED, _DI.OFFER),
            Step(_D.OWNED, (_DD.SEND_REFUSED,)),
            [NO_ANSWER_BUT_ECHOES],
            BESIDE,
            id="the destination refuses what it owns",
        ),
    ],
)
def test_a_flaw_is_found(
    module: ModuleType,
    cell: tuple[Any, Any],
    step: Step[Any, Any],
    plans: list[Plan],
    violation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TABLE", change(module.TABLE, cell, step))
    with pytest.raises(InvariantError, match=violation):
        sweep(plans)


def test_a_destination_without_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(History, "knows", lambda self, handover: False)
    with pytest.raises(InvariantError, match=BESIDE):
        sweep(at_every_step(Fault.FAIL_DESTINATION, 0.3))
