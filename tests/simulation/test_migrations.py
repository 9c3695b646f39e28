"""Thousands of seeded migrations; what is checked stands in `quicferry_lab.simulation.play`.

To play one that failed again: ``quicferry soak migrations --seeds 123..123 --trace``.
"""

from __future__ import annotations

import pytest
from quicferry_lab.soak import play_seeds

CHUNK = 50
CHUNKS = 25


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_seeded_migrations(chunk: int) -> None:
    result = play_seeds(range(chunk * CHUNK, (chunk + 1) * CHUNK))
    assert not result.failures, "\n\n".join(map(str, result.failures))
    # Together these are at least 2,000 migrations, and 400 false alarms.
    assert result.migrations >= CHUNK
    assert result.false_alarms >= 10
