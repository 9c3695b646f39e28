"""The laboratory: testbeds, scenarios and measurements for everything quicferry claims."""
