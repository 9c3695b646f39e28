"""The laboratory: testbeds, scenarios and measurements for everything quicferry claims."""

from quicferry.protocol.logs import escape_logs

__version__ = "0.1.0"

LOGGER = "quicferry_lab"

escape_logs([LOGGER])
