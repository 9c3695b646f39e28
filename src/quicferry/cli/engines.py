"""The container engines, as an option."""

from __future__ import annotations

import click

from quicferry.relocation import ENGINES, Runc

engine_option = click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    default=Runc.name,
    show_default=True,
    help="Container engine.",
)
