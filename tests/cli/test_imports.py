"""A command imports what it needs, when it is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli.all_commands import GROUPS
from cli.command_line import finish, read_json, run, start

from quicferry.cli.help import Group

APPLICATION = """
import json, sys

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(sorted(sys.modules)).encode()})
"""
LISTED = """
import json, sys
before = set(sys.modules)
{}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_after(statements: str) -> set[str]:
    """Return what a Python imports that has imported nothing before."""
    done = subprocess.run(
        [sys.executable, "-c", LISTED.format(statements)], capture_output=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str], depth: int = 1) -> set[str]:
    return {".".join(name.split(".")[:depth]) for name in modules}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_what_is_said_at_once_needs_next_to_nothing(arguments: list[str]) -> None:
    call = f"from quicferry.cli import main; main({arguments}, standalone_mode=False)"
    modules = modules_after(call)
    foreign = packages(modules) - sys.stdlib_module_names - {"quicferry", "click", "quicferry_lab"}
    assert {name for name in foreign if not name.startswith("_")} == set()
    laboratory = {name for name in modules if name.startswith("quicferry_lab.")}
    assert laboratory <= {"quicferry_lab.commands"}  # what it adds is known without it
    ours = packages({name for name in modules if name.startswith("quicferry.")}, 2)
    assert ours == {"quicferry.cli", "quicferry.protocol"}
    assert len(modules) < 150  # an `import click` alone is 60, `import asyncio` 100


def test_the_library_imports_what_is_used_of_it() -> None:
    modules = modules_after("import quicferry; quicferry.Address")
    assert "quicferry.protocol" in modules
    assert "quicferry.server" not in modules
    assert "aioquic" not in modules
    modules = modules_after("import quicferry; quicferry.connect")
    assert "quicferry.client" in modules
    assert "hypercorn" not in modules


def test_a_server_imports_what_it_serves_with(tmp_path: Path) -> None:
    (tmp_path / "listing.py").write_text(APPLICATION)
    arguments = ["listing:app", "--bind", "127.0.0.1:0", "--socket", "s", "--json"]
    server = start("serve", *arguments, "--until-eof", cwd=tmp_path)
    address = read_json(server)["address"]
    modules = set(json.loads(run("fetch", f"https://{address}/", "--insecure").stdout))
    finish(server)
    assert "hypercorn" in modules
    unused = {"dask", "distributed", "hypothesis", "matplotlib", "numpy", "polars", "rich"}
    assert packages(modules) & {*unused, "pytest", "zstandard"} == set()
    assert packages(modules, 2) & {"quicferry.client"} == set()
    assert packages(modules) & {"quicferry_lab"} == set()
    assert "quicferry.relocation.doctor" not in modules
    containers = {name for name in modules if name.startswith("quicferry.relocation.container.")}
    assert containers == {"quicferry.relocation.container.suspension_commands"}


@pytest.mark.parametrize("path", GROUPS, ids=" ".join)
def test_summaries_are_those_of_the_commands(path: tuple[str, ...]) -> None:
    group = GROUPS[path]
    assert isinstance(group, Group)
    for name, elsewhere in group.elsewhere.items():
        assert group.commands[name].get_short_help_str(limit=1000) == elsewhere.summary


@pytest.mark.parametrize("command", ["bench", "demo", "lab", "soak"])
def test_without_the_laboratory_its_commands_say_where_they_are(command: str) -> None:
    program = f"""
import importlib.metadata
importlib.metadata.entry_points = lambda **names: ()
from quicferry.cli import main
main([{command!r}])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"pip install quicferry-lab" in done.stderr
