"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Time limits for one example fail on a busy machine; in CI the examples are the same every time.
settings.register_profile("quicferry", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("quicferry")
