"""Settings for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from quicferry_lab.hosts import LabError, rootfs

# Time limits for one example fail on a busy machine; in CI the examples are the same every time.
settings.register_profile("quicferry", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("quicferry")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the laboratory where it was not asked for, or is not there."""
    if item.get_closest_marker("lab") is None:
        return
    if "lab" not in item.config.getoption("markexpr"):
        pytest.skip("needs the laboratory: make lab-test")
    if os.geteuid() != 0:
        pytest.skip("the laboratory's hosts need root")
    try:
        rootfs.find()
    except LabError as exc:
        pytest.skip(str(exc))
