"""Mutants of Python source: one small change each, as somebody might make it by mistake.

Only what is inside of functions is changed. What else a module says (tables, options, constants) is
evaluated once, when it is imported, and mistakes there are noticed at once.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_DELETED = (
    *(ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete),
    *(ast.Return, ast.Raise, ast.Break, ast.Continue),
)
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_LOGGERS = ("logger", "_logger", "log")


@dataclass(frozen=True)
class Mutant:
    """A change in a function.

    Attributes:
        function: The outermost function, by its qualified name in the module.
        line: Where the change is.
        change: What it is.
        code: The changed function.
    """

    function: str
    line: int
    change: str
    code: CodeType


@dataclass(frozen=True)
class _Change:
    """A field of a node gets another value."""

    node: ast.AST
    field: str
    value: object
    line: int
    words: str


def mutants(source: str, filename: str) -> Iterator[Mutant]:
    """Yield the mutants of a module, in the order of their lines.

    Args:
        source: The module.
        filename: What its code objects call it.
    """
    module = ast.parse(source)
    changes = [(name, change) for name, node in _outermost(module, "") for change in _changes(node)]
    for name, change in sorted(changes, key=lambda each: each[1].line):
        before = getattr(change.node, change.field)
        setattr(change.node, change.field, change.value)
        try:
            compiled = compile(ast.fix_missing_locations(module), filename, "exec")
        finally:
            setattr(change.node, change.field, before)
        yield Mutant(name, change.line, change.words, dict(functions(compiled))[name])


def functions(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """Yield the outermost functions of a module's code, with their qualified names."""
    for constant in code.co_consts:
        if not isinstance(constant, CodeType):
            continue
        if constant.co_flags & 0x1:  # CO_OPTIMIZED: a function, and not the body of a class
            yield constant.co_qualname, constant
        else:
            yield from functions(constant)


def _outermost(
    node: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _outermost(child, f"{prefix}{child.name}.")


def _changes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[_Change]:
    stored = Counter(
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    for node in _walk(function):
        line = getattr(node, "lineno", function.lineno)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield from _deletions(node, name, value, stored)
        for name, value, words in _replacements(node):
            yield _Change(node, name, value, line, words)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is evaluated when a function is called, and matters to more than people."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "args") and not isinstance(
            node, ast.Call
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, (ast.JoinedStr, ast.Assert)):
                yield from _walk(child)


def _deletions(
    node: ast.AST, field: str, body: list[ast.stmt], stored: Counter[str]
) -> Iterator[_Change]:
    for number, statement in enumerate(body):
        is_last = isinstance(node, _FUNCTION) and number + 1 == len(body)
        if isinstance(statement, _DELETED) and not _goes_without_saying(statement, stored, is_last):
            # Its names are still there, so they stay local, or free, as they were.
            dead = ast.copy_location(
                ast.If(test=ast.Constant(value=0), body=[statement], orelse=[]), statement
            )
            replaced = [*body[:number], dead, *body[number + 1 :]]
            words = f"deleted: {_text(statement)}"
            yield _Change(node, field, replaced, statement.lineno, words)


def _goes_without_saying(statement: ast.stmt, stored: Counter[str], is_last: bool) -> bool:
    """Return whether nothing would work without it, or nobody would notice."""
    match statement:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Return(value=None | ast.Constant(value=None)):
            return is_last
        case ast.Raise(exc=ast.Call(func=ast.Name(id="AssertionError"))):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in _LOGGERS
        case ast.Assign(targets=[ast.Name(id=name)]):
            return stored[name] == 1
        case ast.Assign(targets=[ast.Tuple(elts=names)]):
            return all(isinstance(each, ast.Name) and stored[each.id] == 1 for each in names)
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            return value is None or stored[name] == 1
    return False


def _replacements(node: ast.AST) -> Iterator[tuple[str, Any, str]]:
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if not _is_negated_by_itself(test):
                yield "test", _negation(test), f"not ({_text(test)})"
        case ast.comprehension(ifs=tests):
            for number in range(len(tests)):
                rest = tests[:number] + tests[number + 1 :]
                yield "ifs", rest, f"without: if {_text(tests[number])}"
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            replaced = [_COMPARISONS[type(operator)]()]
            yield "ops", replaced, f"{_text(node)} -> {_with(node, ops=replaced)}"
        case ast.Compare(ops=operators):
            for number, operator in enumerate(operators):
                if type(operator) in _COMPARISONS:
                    other = _COMPARISONS[type(operator)]()
                    replaced = [*operators[:number], other, *operators[number + 1 :]]
                    yield "ops", replaced, f"{_text(node)} -> {_with(node, ops=replaced)}"
        case ast.BoolOp(op=both, values=values):
            neutral = ast.Constant(value=isinstance(both, ast.And))
            for number, value in enumerate(values):
                rest = values[:number] + values[number + 1 :]
                yield "values", [neutral, *rest], f"{_text(node)}, without: {_text(value)}"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "operand", _negation(operand), f"without not: {_text(node)}"
        case ast.UnaryOp(op=ast.USub()):
            yield "op", ast.UAdd(), f"without minus: {_text(node)}"
        case ast.BinOp(op=sign) | ast.AugAssign(op=sign) if type(sign) in _OPERATORS:
            opposite = _OPERATORS[type(sign)]()
            yield "op", opposite, f"{_text(node)} -> {_with(node, op=opposite)}"
        case ast.Constant(value=bool(value)):
            yield "value", not value, f"{value} -> {not value}"
        case ast.Constant(value=int() | float() as number):
            yield "value", number + 1, f"{number} -> {number + 1}"
        case ast.Name(id=name, ctx=ast.Load()) if name in _NAMES:
            yield "id", _NAMES[name], f"{name} -> {_NAMES[name]}"


def _is_negated_by_itself(test: ast.expr) -> bool:
    match test:
        case ast.UnaryOp(op=ast.Not()) | ast.Constant():
            return True
        case ast.Compare(
            ops=[ast.Eq() | ast.NotEq() | ast.Is() | ast.IsNot() | ast.In() | ast.NotIn()]
        ):
            return True
    return False


def _negation(expression: ast.expr) -> ast.expr:
    return ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=expression), expression)


def _with(node: ast.AST, **fields: Any) -> str:
    changed = type(node)(**{**dict(ast.iter_fields(node)), **fields})
    return _text(changed)


def _text(node: ast.AST) -> str:
    lines = ast.unparse(node).splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ..."
