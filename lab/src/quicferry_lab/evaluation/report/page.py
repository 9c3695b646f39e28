"""The page: a template, and elements that escape whatever text they are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template

MISSING = "\N{EN DASH}"
"""What is in a cell without a value."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: What links to it are called.
        title: Its heading.
        body: Its elements, as HTML.
    """

    name: str
    title: str
    body: str


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it has numbers, or is the thesis's."""

    heading: str
    kind: str = "number"


TEXT = "text"
NAME = "name"
"""A text that is not broken."""
NUMBER = "number"
THESIS = "number thesis"


def page(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """Return the whole page; the texts are plain, and the sections' bodies HTML."""
    template = Template((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        lead=escape(lead),
        contents="\n".join(
            f'<li><a href="#{escape(each.name)}">{escape(each.title)}</a></li>' for each in sections
        ),
        sections="\n".join(
            f'<section id="{escape(each.name)}">\n<h2>{escape(each.title)}</h2>\n{each.body}\n'
            "</section>"
            for each in sections
        ),
        footer=escape(footer),
    )


def plain(value: str | float | None) -> str:
    """Return a parameter as a text."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:g}"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def heading(text: str) -> str:
    """Return a heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def figure(svg: str, title: str, caption: str) -> str:
    """Return a picture, an element of its own, with its caption."""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return f"<figure>\n{labelled}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain texts."""
    head = "".join(
        f'<th scope="col" class="{column.kind}">{escape(column.heading)}</th>' for column in columns
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{_kind(column, cell)}">{escape(cell)}</td>'
            for column, cell in zip(columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table>\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def items(texts: Iterable[str]) -> str:
    """Return a list of plain texts."""
    return '<ul class="runs">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


VERDICT = "verdict"
MET = "\N{CHECK MARK} reached"
MISSED = "\N{BALLOT X} missed"


def _kind(column: Column, cell: str) -> str:
    if column.kind == VERDICT:
        return {MET: "met", MISSED: "missed"}.get(cell, TEXT)
    return column.kind
