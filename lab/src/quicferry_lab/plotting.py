"""What all pictures of the laboratory have in common: colours, and axes of times."""

from __future__ import annotations

from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter, StrMethodFormatter

# Okabe and Ito's palette, told apart with any colour vision.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
VERMILION = "#D55E00"
SKY = "#56B4E9"
GREY = "#555555"


def format_logarithmic(axis: Axis) -> None:
    """Give a logarithmic axis plain numbers, at as many ticks as are told apart."""
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def format_short_logarithmic(axis: Axis) -> None:
    """Do the same for an axis with little room: 1, 3, 10, 30 and so on."""
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())
