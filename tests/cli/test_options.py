"""Every option of every command does something."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import quicferry_lab
from cli.all_commands import GROUPS, LEAVES

import quicferry
from quicferry.cli.options import Number

SOURCES = [Path(str(each.__file__)).parent for each in (quicferry, quicferry_lab)]
TRACED = {"serve", "fetch", "demo", "agent run"}
CONTROL = {f"ctl {name}" for name in ("imminent", "switch", "wait", "migrate", "status")} | {
    f"ctl {name}" for name in ("abort", "resume", "shutdown")
}


@functools.cache
def values_that_are_read() -> frozenset[str]:
    """Return all names that are read somewhere: of attributes, and keys."""
    names = set()
    for path in (path for source in SOURCES for path in source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(attr=name, ctx=ast.Load()):
                    names.add(name)
                case ast.Subscript(slice=ast.Constant(value=str(name)), ctx=ast.Load()):
                    names.add(name)
    return frozenset(names)


def parameters_without_use(callback: Callable[..., Any], given: set[str]) -> set[str]:
    """Return those that a function takes and does not look at."""
    callback = inspect.unwrap(callback)
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(callback))).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    read = {
        node.id
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    arguments = function.args
    named = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return {
        name
        for name in given
        if name not in read and (name in named or name not in values_that_are_read())
    }


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_parameter_is_used(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    assert command.callback is not None
    given = {each.name for each in command.params if each.expose_value and each.name}
    assert parameters_without_use(command.callback, given) == set()


def test_a_parameter_without_use_is_found() -> None:
    def command(address: str, *, qlog: str, **options: str) -> None:
        print(address, options)

    given = {"address", "qlog", "no_such_option", "application"}
    assert parameters_without_use(command, given) == {"qlog", "no_such_option"}


def has(option: str) -> set[str]:
    return {
        " ".join(path)
        for path, command in LEAVES.items()
        if any(option in parameter.opts for parameter in command.params)
    }


def test_traces_where_there_is_something_to_trace() -> None:
    assert has("--qlog") == TRACED | CONTROL


def test_numbers_are_finite() -> None:
    for path, command in LEAVES.items():
        for parameter in command.params:
            if isinstance(parameter.type, click.types.FloatParamType):
                assert isinstance(parameter.type, Number), (path, parameter.name)


def test_every_command_says_how_much_it_logs() -> None:
    assert has("--log-level") == {" ".join(path) for path in LEAVES}


# Options that texts name

NAMED = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"`?\b(?:quicferry )((?:[a-z]+ ?)+)")
OTHER_PROGRAMS = re.compile(r"`(?!quicferry|--)[^`]*`| -- .*|^(?:mkdir|runc|podman|tar) .*")
"""Command lines of others, which have options of their own."""


def named_options(text: str) -> set[str]:
    return set(NAMED.findall(OTHER_PROGRAMS.sub("", text)))


def options_of(path: tuple[str, ...]) -> set[str]:
    """Return the options of a command, and of the groups that it is in."""
    every = {**GROUPS, **LEAVES}
    return {
        option
        for end in range(len(path) + 1)
        if path[:end] in every
        for parameter in every[path[:end]].params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "--version"}


def named_commands(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands that a text names."""
    for match in COMMAND.finditer(text):
        words = tuple(match[1].split())
        for end in range(len(words), 0, -1):
            if words[:end] in LEAVES or words[:end] in GROUPS:
                yield words[:end]
                break


def unknown_options(text: str, *speakers: tuple[str, ...]) -> set[str]:
    """Return the options that a text names and no command has that it can mean.

    Args:
        text: The text.
        speakers: The commands that may say it.
    """
    elsewhere = set().union(*map(options_of, named_commands(text)))
    return {
        option
        for option in named_options(text) - elsewhere
        if not any(option in options_of(speaker) for speaker in speakers)
    }


@pytest.mark.parametrize("path", [*GROUPS, *LEAVES], ids=" ".join)
def test_help_names_options_that_there_are(path: tuple[str, ...]) -> None:
    command = {**GROUPS, **LEAVES}[path]
    texts = [command.help or "", command.epilog or "", *getattr(command, "examples", ())]
    texts += [option.help or "" for option in command.params if isinstance(option, click.Option)]
    assert {text: found for text in texts if (found := unknown_options(text, path))} == {}


def messages(path: Path) -> Iterator[str]:
    """Yield the texts in a module: literals of several words that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                text = "".join(
                    str(v.value) if isinstance(v, ast.Constant) else "{}" for v in values
                )
            case ast.Constant(value=str(text)) if id(node) not in parts:
                pass
            case _:
                continue
        if " " in text and id(node) not in statements:
            yield text


def speakers_of(path: Path) -> list[tuple[str, ...]]:
    """Return the commands that a module of the command line belongs to."""
    return [
        words
        for words, command in LEAVES.items()
        if command.callback is not None
        and inspect.getsourcefile(inspect.unwrap(command.callback)) == str(path)
    ]


@functools.cache
def anywhere() -> set[str]:
    return set().union(*map(options_of, LEAVES))


SPEAKING = [
    path
    for path in sorted(SOURCES[0].rglob("*.py"))
    if path.parent.name != "engines"  # there the options are those of the engines
    and any(map(named_options, messages(path)))
]


@pytest.mark.parametrize("path", SPEAKING, ids=lambda path: str(path.relative_to(SOURCES[0])))
def test_messages_name_options_that_there_are(path: Path) -> None:
    speakers = speakers_of(path)
    for text in messages(path):
        if speakers:
            assert any(not unknown_options(text, each) for each in speakers), text
        elif path.parent.name == "cli" or "; " in text:
            assert named_options(text) <= anywhere(), text


@pytest.mark.parametrize(
    ("text", "command", "unknown"),
    [
        ("choose one with --socket", ("migrate",), set()),
        ("choose one with --sockets", ("migrate",), {"--sockets"}),
        ("choose one with --socket", ("fetch",), {"--socket"}),
        ("Options of `quicferry serve`, for example --retry", ("image",), set()),
        ("see `podman ps --all`", ("image",), set()),
        ("quicferry image app:app --out x -- --retry", ("image",), set()),
    ],
)
def test_options_that_there_are_not_are_found(
    text: str, command: tuple[str, ...], unknown: set[str]
) -> None:
    assert unknown_options(text, command) == unknown
