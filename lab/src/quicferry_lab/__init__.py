"""The laboratory: testbeds, scenarios and measurements for everything quicferry claims."""

__version__ = "0.1.0"
