"""The layers of quicferry: who may import whom, and who may touch aioquic's private parts.

Both are read off the source, so an import inside a function or under TYPE_CHECKING counts too.

Private parts: outside of `quicferry.transport`, a name that starts with one underscore may be used
on `self`, `cls` and `super()`, and on other objects only where the same module defines that name
and aioquic has none like it. `self` is never a connection there, because no other package may
derive from a connection class. What remains is what a base class offers its heirs, as aioquic's
`QuicConnectionProtocol` does in `quicferry.io`.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import aioquic
import pytest
import quicferry_lab

import quicferry

SOURCES = [Path(str(each.__file__)).parent for each in (quicferry, quicferry_lab)]
MODULES = sorted(path for source in SOURCES for path in source.rglob("*.py"))

ABOVE_SERVER = frozenset({"io", "transport", "protocol"})
MAY_IMPORT = {
    "protocol": frozenset[str](),
    "transport": frozenset({"protocol"}),
    "io": frozenset({"transport", "protocol"}),
    "server": ABOVE_SERVER,
    "client": ABOVE_SERVER,
    "relocation": ABOVE_SERVER | {"server"},
    "cli": ABOVE_SERVER | {"server", "client", "relocation"},
    "lab": ABOVE_SERVER | {"server", "client", "relocation", "cli"},
}
LIBRARIES = {
    "protocol": frozenset[str](),
    "transport": frozenset({"aioquic", "msgpack"}),
    "io": frozenset({"aioquic", "cryptography"}),
    "server": frozenset({"aioquic", "cryptography", "hypercorn"}),
    "client": frozenset({"aioquic"}),
    "relocation": frozenset({"cryptography", "zstandard"}),
}
"""What a layer may use beside the standard library; lab and cli may use every dependency."""

CONNECTION_CLASSES = frozenset({"QuicConnection", "Connection"})


def module_name(path: Path) -> str:
    """Return the dotted name of the module at `path`, `quicferry.io.__init__` for a package."""
    (source,) = (each for each in SOURCES if path.is_relative_to(each))
    return ".".join(path.relative_to(source.parent).with_suffix("").parts)


def layer_of(module: str) -> str | None:
    """Return the layer that the dotted name lies in, None for the package `quicferry` itself."""
    if module.partition(".")[0] == "quicferry_lab":
        return "lab"
    _, _, inside = module.partition(".")
    layer = inside.partition(".")[0]
    return layer if layer in MAY_IMPORT else None


def imported_names(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield everything that `module` imports as a dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden_imports(module: str, source: str) -> list[str]:
    """Return the imports of `module` that its layer is not allowed."""
    layer = layer_of(module)
    if layer is None:
        return []
    forbidden = []
    for name in imported_names(module, ast.parse(source)):
        root = name.partition(".")[0]
        if name == "quicferry.__version__":
            allowed = True
        elif root in {"quicferry", "quicferry_lab"}:
            target = layer_of(name)
            uses_public_interface = target is None and layer in {"lab", "cli"}
            allowed = uses_public_interface or target in {layer, *MAY_IMPORT[layer]}
        else:
            allowed = root in sys.stdlib_module_names or root in LIBRARIES.get(layer, {root})
        if not allowed:
            forbidden.append(name)
    return forbidden


def is_private(name: str) -> bool:
    """Tell whether `name` is one that only its owner and its heirs use."""
    return name.startswith("_") and not name.endswith("__") and name != "_"


def is_own(receiver: ast.expr) -> bool:
    """Tell whether `receiver` is the object or class itself."""
    match receiver:
        case ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")):
            return True
    return False


def defined_names(tree: ast.Module) -> set[str]:
    """Return the names of functions, and of attributes that are set on `self`, in a module."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


# These stand for another implementation's connections, and differ from ours where it does.
DOUBLES = {"quicferry_lab.simulation.thesis"}


@functools.cache
def names_in_aioquic() -> frozenset[str]:
    """Return the private names that aioquic's modules define."""
    sources = Path(aioquic.__file__).parent.rglob("*.py")
    trees = (ast.parse(source.read_text(encoding="utf-8")) for source in sources)
    return frozenset(name for tree in trees for name in defined_names(tree) if is_private(name))


def private_uses(module: str, source: str) -> list[str]:
    """Return the uses of other classes' private parts in `module`."""
    if layer_of(module) == "transport" or module in DOUBLES:
        return []
    found = []
    tree = ast.parse(source)
    ours = defined_names(tree) - names_in_aioquic()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=receiver, attr=name):
                if is_private(name) and not is_own(receiver) and name not in ours:
                    found.append(ast.unparse(node))
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ):
                if is_private(name):
                    found.append(ast.unparse(node))
            case ast.ClassDef(bases=bases):
                names = {ast.unparse(base).rpartition(".")[2] for base in bases}
                if names & CONNECTION_CLASSES:
                    found.append(f"class {node.name} derives from a connection")
            case ast.ImportFrom(names=aliases, level=0):
                found += [alias.name for alias in aliases if is_private(alias.name)]
    return found


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Return the modules that import each other, on whatever way, and those that import these."""
    left = {module: set(imported) for module, imported in graph.items()}
    while leaves := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in leaves}
    return set(left)


class _Imports(ast.NodeVisitor):
    """Collects what is imported, but for what only a hint needs."""

    def __init__(self) -> None:
        self.found: list[ast.stmt] = []

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.append(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found.append(node)


def import_graph() -> dict[str, set[str]]:
    """Return which module imports which."""
    names = {module_name(path).removesuffix(".__init__") for path in MODULES}
    graph = {}
    for path in MODULES:
        visitor = _Imports()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        found = imported_names(module_name(path), ast.Module(visitor.found, []))
        own = module_name(path).removesuffix(".__init__")
        modules = {name if name in names else name.rpartition(".")[0] for name in found}
        graph[own] = (modules & names) - {own}
    return graph


def test_no_modules_import_each_other() -> None:
    assert circles(import_graph()) == set()


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_every_folder_is_a_layer() -> None:
    folders = {path.name for path in SOURCES[0].iterdir() if any(path.glob("*.py"))}
    assert folders <= set(MAY_IMPORT) - {"lab"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_layers(path: Path) -> None:
    assert forbidden_imports(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_private_parts_stay_in_the_transport(path: Path) -> None:
    assert private_uses(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("quicferry.protocol.client", "import enum\nfrom .errors import PeerError", []),
        ("quicferry.protocol.client", "import aioquic", ["aioquic"]),
        ("quicferry.protocol.client", "from ..io import udp", ["quicferry.io.udp"]),
        ("quicferry.transport.__init__", "from ..protocol import Address\nimport aioquic.tls", []),
        ("quicferry.transport.__init__", "from .. import server", ["quicferry.server"]),
        ("quicferry.io.udp", "def f():\n    import quicferry.server", ["quicferry.server"]),
        ("quicferry.io.udp", "import rich.table", ["rich.table"]),
        ("quicferry.server.core", "import rich", ["rich"]),
        ("quicferry.server.core", "import hypercorn\nfrom quicferry.io import udp", []),
        ("quicferry.server.core", "from quicferry.client import x", ["quicferry.client.x"]),
        ("quicferry.client.core", "from quicferry import serve", ["quicferry.serve"]),
        ("quicferry.client.core", "from quicferry import __version__", []),
        ("quicferry_lab.demo.run", "from quicferry.cli import main\nimport matplotlib", []),
        ("quicferry.cli.main", "import click, quicferry", []),
        ("quicferry.cli.main", "from quicferry_lab import demo", ["quicferry_lab.demo"]),
        ("quicferry.__init__", "from quicferry.server import serve", []),
    ],
)
def test_forbidden_imports_are_found(module: str, source: str, forbidden: list[str]) -> None:
    assert forbidden_imports(module, source) == forbidden


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("self._quic.datagrams_to_send(now)", []),
        ("super()._process_events()", []),
        ("def _read(self): ...\nclient._read()", []),
        ("self._loss = 1\nclient._loss", ["client._loss"]),
        ("self._socket == other._socket", ["other._socket"]),
        ("self._socket = 1\nself._socket == other._socket", []),
        ("a.__class__", []),
        ("self._quic._loss", ["self._quic._loss"]),
        ("connection._network_paths[0].addr", ["connection._network_paths"]),
        ("getattr(connection, '_loss')", ["getattr(connection, '_loss')"]),
        ("c._QuicConnection__frame_handlers", ["c._QuicConnection__frame_handlers"]),
        ("from aioquic.tls import _x", ["_x"]),
        ("class C(transport.Connection): ...", ["class C derives from a connection"]),
        ("class P(QuicConnectionProtocol): ...", []),
    ],
)
def test_private_uses_are_found(source: str, found: list[str]) -> None:
    assert private_uses("quicferry.io.protocol", source) == found
    assert private_uses("quicferry.transport.connection", source) == []
