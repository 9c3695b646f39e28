"""The command line: ``quicferry serve``, ``fetch``, ``ctl`` and ``demo``."""

from quicferry.cli.main import main

__all__ = ["main"]
