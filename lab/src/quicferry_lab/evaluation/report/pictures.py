"""A picture as it is kept, and the look that all of them have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from quicferry_lab import plotting

LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    # Letters are outlines: a picture looks the same whatever fonts there are.
    "svg.fonttype": "path",
    # What elements are named after does not change from run to run.
    "svg.hashsalt": "quicferry",
    # That of clouds of points, which are no vectors.
    "savefig.dpi": 150,
}
THESIS = "#999999"
"""The colour of what the thesis has found."""

WIDTH = 10.5
"""Of every picture, in inches."""


@dataclass(frozen=True)
class Picture:
    """A picture with what is said of it.

    Attributes:
        name: Of its files.
        title: What one sees.
        caption: How to read it.
        figure: The picture itself.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Style:
    """How an arm looks, told from others without colour as well."""

    colour: str
    hatch: str
    marker: str
    line: str


def style_of(arm: str) -> Style:
    """Return how an arm looks: protocols by colour, hatch and marker, policies by line."""
    line = next((line for word, line in _LINES.items() if word in arm), "-")
    for word, (colour, hatch, marker) in _PROTOCOLS.items():
        if word in arm:
            return Style(colour, hatch, marker, line)
    return Style(plotting.GREY, "", "x", line)


_PROTOCOLS: Mapping[str, tuple[str, str, str]] = {
    "Explicit": (plotting.BLUE, "", "o"),
    "pool": (plotting.ORANGE, "//", "s"),
    "Synchronized": (plotting.PURPLE, "xx", "D"),
    "Symmetric": (plotting.GREEN, "..", "^"),
}
_LINES = {"eager": "-", "proactive": "--", "reactive": ":", "random": "-.", "parallel": "-"}


def save(picture: Picture, folder: Path) -> list[Path]:
    """Write a picture as PNG and SVG; the same picture makes the same files."""
    png, svg = folder / f"{picture.name}.png", folder / f"{picture.name}.svg"
    picture.figure.savefig(png, dpi=150, metadata={"Software": None})
    # The layout takes most of the time, and is the same.
    picture.figure.set_layout_engine("none")
    picture.figure.savefig(svg, metadata={"Date": None})
    text = svg.read_text(encoding="utf-8")
    svg.write_text(re.sub(r" *<metadata>.*?</metadata>\n", "", text, flags=re.DOTALL), "utf-8")
    return [png, svg]


def inlined(svg: Path) -> str:
    """Return a saved picture as an element of a page with others, whose names stay apart."""
    text = svg.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    # A page needs no declaration of namespaces, and the picture takes the width that there is.
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2)
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{svg.stem}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{svg.stem}-", text)
