"""The commands of the laboratory, which `quicferry` has where the laboratory is installed."""
