"""Each attack of the siege takes place, and the good client is served beside it."""

from __future__ import annotations

import json

import pytest
from quicferry_lab.siege.__main__ import line
from quicferry_lab.siege.attacks import ATTACKS
from quicferry_lab.siege.siege import MOST_GROWTH, Row, besiege, percentile

GOOD = Row("flood", calm=0.009, besieged=0.08, requests=400, unanswered=0, growth=1 << 20, done=7)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_attack(attack: str) -> None:
    row = await besiege(attack, 1.0)
    assert row.done > 0
    assert row.requests > 0
    assert row.unanswered == 0
    assert 0 < row.calm < row.besieged * 1000


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"unanswered": 3}, "3 requests without an answer"),
        ({"besieged": 0.101, "calm": 0.05}, "more than 100 ms"),
        ({"besieged": 0.095}, "more than 10 times"),
        ({"growth": MOST_GROWTH + 1}, "MB"),
        ({"done": 0}, "not taken place"),
        ({"problem": "the server cannot move"}, "cannot move"),
    ],
)
def test_what_is_missed_is_said(changes: dict[str, float], text: str) -> None:
    assert GOOD.missed == []
    assert line(GOOD).endswith("ok")
    row = Row(**json.loads(json.dumps(vars(GOOD) | changes)))
    assert [problem for problem in row.missed if text in problem]
    assert text in line(row)


def test_percentile() -> None:
    values = [float(number) for number in range(1, 201)]
    assert percentile(values, 0.99) == 198
    assert percentile(values[:1], 0.99) == 1
    assert percentile([], 0.99) == float("inf")
