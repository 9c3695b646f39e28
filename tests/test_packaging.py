"""What is delivered: the version, the type marker, the command, the dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest
import quicferry_lab
from packaging.requirements import Requirement
from packaging.version import Version

import quicferry

PACKAGE = Path(quicferry.__file__).parent
LABORATORY = Path(str(quicferry_lab.__file__)).parent
PROJECT = Path(__file__).parent.parent


def test_version_is_the_changelogs_newest() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert str(Version(quicferry.__version__)) == released[0] == quicferry.__version__
    assert sorted(released, key=Version, reverse=True) == released


def test_the_laboratory_has_the_same_version() -> None:
    assert quicferry_lab.__version__ == quicferry.__version__


@pytest.mark.parametrize("package", [PACKAGE, LABORATORY])
def test_types_are_delivered(package: Path) -> None:
    assert (package / "py.typed").is_file()


def test_the_command_exists() -> None:
    (script,) = entry_points(group="console_scripts", name="quicferry")
    assert callable(script.load())


def needs(configuration: Path) -> set[str]:
    project = tomllib.loads(configuration.read_text(encoding="utf-8"))["project"]
    return {Requirement(text).name.lower() for text in project["dependencies"]}


@pytest.mark.parametrize("package", [PACKAGE, LABORATORY])
def test_every_imported_library_is_a_declared_dependency(package: Path) -> None:
    declared = needs(PROJECT / "pyproject.toml")
    if package == LABORATORY:
        declared |= needs(PROJECT / "lab/pyproject.toml")
    imported: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    libraries = imported - sys.stdlib_module_names - {package.name, "__main__"}
    providers = packages_distributions()
    assert {
        name for name in libraries if declared.isdisjoint(map(str.lower, providers[name]))
    } == set()


@pytest.mark.parametrize("library", ["matplotlib", "polars", "distributed"])
def test_what_is_heavy_is_loaded_only_where_it_is_needed(library: str) -> None:
    program = f"import sys, quicferry, quicferry.cli; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
