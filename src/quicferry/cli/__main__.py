"""Makes ``python -m quicferry.cli`` the same as ``quicferry``."""

from quicferry.cli import main

main()
