"""Every option of every command does something."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.all_commands import LEAVES

import quicferry

SOURCE = Path(quicferry.__file__).parent
TRACED = {"serve", "fetch", "demo", "agent run"}
CONTROL = {f"ctl {name}" for name in ("imminent", "switch", "wait", "migrate", "status")} | {
    f"ctl {name}" for name in ("abort", "resume", "shutdown")
}


@functools.cache
def values_that_are_read() -> frozenset[str]:
    """Return all names that are read somewhere: of attributes, and keys."""
    names = set()
    for path in SOURCE.rglob("*.py"):
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


def test_every_command_says_how_much_it_logs() -> None:
    assert has("--log-level") == {" ".join(path) for path in LEAVES}
