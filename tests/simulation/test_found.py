"""Scenarios that once failed, as they were found by seeds and sweeps; seeds mean others by now."""

from __future__ import annotations

from dataclasses import replace

import pytest
from quicferry_lab.simulation import Answer, Exchange, NatKind, Path, SimulatedAddress
from quicferry_lab.simulation.coincidences import Loss, Moment
from quicferry_lab.simulation.play import play
from quicferry_lab.simulation.scenario import (
    GRACE,
    ClientChange,
    Ending,
    Follow,
    Move,
    Scenario,
    server_address,
)

from quicferry.protocol import ALL_PROTOCOLS, MigrationProtocol, Policy, Scheduler

HOME = server_address(4, 1)
AWAY = server_address(4, 4)
SYMMETRIC = MigrationProtocol.SYMMETRIC
SYNCHRONIZED = MigrationProtocol.SYNCHRONIZED_SYMMETRIC
REBINDING = ClientChange.NAT_REBINDING
UNCHANGED = ClientChange.NONE
BOTH = Answer.AT_ONCE


def move(
    protocol: MigrationProtocol,
    destination: SimulatedAddress,
    *lanes: tuple[Exchange, ...],
    wait: float = 0.0,
    linger: float = 0.0,
    frozen: float = 0.0,
    change: ClientChange = ClientChange.MIGRATION,
    after: float = 0.0,
    follow: Follow = Follow.SETTLED,
) -> Move:
    return Move(
        protocol=protocol,
        destination=destination,
        lanes=lanes,
        wait=wait,
        alarm=0.0,
        linger=linger,
        frozen=frozen,
        ending=Ending.SWITCH,
        follow=follow,
        asked_after=None,
        client_change=change,
        client_changes_after=after,
        client_grace=GRACE,
    )


def scenario(
    seed: int, paths: tuple[tuple[Path, Path], tuple[Path, Path]], nat: NatKind | None, *moves: Move
) -> Scenario:
    return Scenario(
        seed=seed,
        protocols=ALL_PROTOCOLS,
        policy=Policy.REACTIVE,
        scheduler=Scheduler.CYCLIC,
        knows_withdrawals=False,
        probe_interval=0.1,
        family=4,
        server=HOME,
        pool=(),
        paths={HOME: paths[0], AWAY: paths[1]},
        nat=nat,
        keep_alive=2.0,
        moves=moves,
    )


def requests(*sizes: tuple[int, int]) -> tuple[Exchange, ...]:
    return tuple(Exchange(upload, download) for upload, download in sizes)


def calm(delay: float) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    return ((Path(delay=delay), Path(delay=delay)), (Path(delay=delay), Path(delay=delay)))


FOUND = {
    "a NAT rebinds, and the server's only word is a challenge": scenario(
        709440,
        (
            (
                Path(
                    delay=0.00509288436055713,
                    jitter=0.0018960879708283744,
                    reordering=0.03571634290353598,
                    reordering_delay=0.001224182336237364,
                ),
                Path(delay=0.00509288436055713, loss=0.04197727521135555),
            ),
            (
                Path(
                    delay=0.005424090444756613,
                    rate=5360150.81122872,
                    loss=0.01945466762221843,
                    jitter=0.00036743397194491406,
                    duplication=0.04728694222651656,
                ),
                Path(
                    delay=0.005424090444756613,
                    rate=5360150.81122872,
                    jitter=0.0005788547325866954,
                    reordering=0.009739257944720432,
                    reordering_delay=0.0052225621442001866,
                ),
            ),
        ),
        NatKind.FULL_CONE,
        move(
            SYMMETRIC,
            AWAY,
            (Exchange(39351, 26900, answer=BOTH),),
            wait=0.006029068789003018,
            frozen=0.02269756276440503,
            change=REBINDING,
            after=0.09437111359129594,
            follow=Follow.AT_ONCE,
        ),
        move(
            SYNCHRONIZED,
            HOME,
            (
                Exchange(438, 4550, think=0.41631857530485605),
                Exchange(51, 2853, think=0.9194854878216364),
            ),
            (Exchange(24041, 20263, answer=BOTH),),
            requests(
                (1303, 618),
                (950, 1727),
                (1867, 2668),
                (806, 584),
                (1747, 724),
                (1793, 783),
                (1869, 2584),
                (94, 1909),
                (771, 4781),
                (442, 621),
                (442, 2227),
                (1435, 1559),
            ),
            frozen=0.03265629683146914,
            change=UNCHANGED,
        ),
    ),
    "a client moves, and the server's only word is a challenge": scenario(
        1550,
        calm(0.05),
        None,
        move(
            SYMMETRIC,
            AWAY,
            (Exchange(467, 1558, think=0.5289409847232927),),
            (
                Exchange(608, 4289, pause=0.19671589053842675),
                Exchange(575, 2673, pause=0.09678250193558753),
                Exchange(1300, 3770, pause=0.03936161865759389),
            ),
            wait=0.3,
            linger=0.2,
            change=UNCHANGED,
        ),
        move(
            SYMMETRIC,
            HOME,
            requests((1929, 2261), (590, 4172), (1997, 2461), (1347, 1980)),
            wait=0.3,
            linger=0.2,
            frozen=0.1,
            after=0.06451908798449321,
        ),
    ),
    "a client moves three times, each time with its server": scenario(
        3099,
        calm(0.05),
        None,
        move(SYNCHRONIZED, AWAY, (Exchange(44931, 50),), frozen=0.1, follow=Follow.AT_ONCE),
        move(
            SYNCHRONIZED,
            HOME,
            (Exchange(425, 4140, think=0.17269210515627553),),
            wait=0.016568619515055494,
            frozen=0.1,
            after=0.11606356676056824,
        ),
        move(
            SYNCHRONIZED,
            AWAY,
            (Exchange(14544, 26696, answer=BOTH),),
            (Exchange(84, 50335),),
            wait=0.3,
            linger=0.2,
            frozen=0.1,
            after=0.08763509933940689,
        ),
    ),
    "a client moves before the server has finished its first move": scenario(
        5094,
        calm(0.002),
        None,
        move(
            SYMMETRIC,
            AWAY,
            wait=0.00097368173416656,
            linger=0.008,
            after=0.011670219524858229,
            follow=Follow.AT_ONCE,
        ),
        move(SYMMETRIC, HOME, frozen=0.3, after=0.30091555918109186),
        move(SYMMETRIC, AWAY, (Exchange(16937, 77),), frozen=0.004, after=0.007965726727783411),
    ),
    "an answer comes late, and what acknowledges it is lost": replace(
        scenario(
            41003998,
            (
                (
                    Path(
                        delay=0.007868176141400627,
                        rate=23021523.15310678,
                        reordering=0.03635463187712984,
                        reordering_delay=0.00333241318492974,
                        duplication=0.02906957854518707,
                    ),
                    Path(
                        delay=0.007868176141400627,
                        rate=23021523.15310678,
                        loss=0.015742027485291882,
                        jitter=0.0014165817984194949,
                        reordering=2.686779086288338e-05,
                        reordering_delay=0.00779609213526016,
                    ),
                ),
                (
                    Path(
                        delay=0.00425706020454081,
                        loss=0.00277341806663588,
                        jitter=0.0020630549115355696,
                        reordering=0.044145691708795044,
                        reordering_delay=0.003949477391025582,
                    ),
                    Path(
                        delay=0.00425706020454081,
                        loss=0.04895376662993306,
                        reordering_delay=0.003304643394794229,
                    ),
                ),
            ),
            NatKind.FULL_CONE,
            replace(
                move(
                    MigrationProtocol.EXPLICIT,
                    AWAY,
                    requests(
                        (326, 1789),
                        (374, 3797),
                        (1057, 3901),
                        (1196, 1216),
                        (1634, 355),
                        (76, 602),
                        (650, 3968),
                        (766, 4391),
                        (1025, 2318),
                        (278, 3687),
                        (46, 4251),
                        (29, 582),
                        (952, 1160),
                        (550, 1264),
                        (1760, 906),
                        (417, 1746),
                        (1071, 1781),
                        (1129, 4111),
                    ),
                    wait=0.03264909872269287,
                    linger=0.031472704565602506,
                    frozen=0.015736352282801253,
                    change=REBINDING,
                    after=0.03977846870172262,
                ),
                losses=(Loss(Moment.CLIENT_CHANGE, by_client=False, skipped=1, count=1),),
            ),
        ),
        probe_interval=0.02,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str) -> None:
    play(FOUND[name])
