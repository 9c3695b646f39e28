"""Whatever the arguments are, a command ends with words, and never with "internal error"."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from cli.all_commands import LEAVES
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quicferry.cli import main
from quicferry.protocol import QuicferryError
from quicferry.relocation import make_identities

FEW = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXTS = (
    "",
    " ",
    "-",
    "--",
    "@",
    "@-",
    "=",
    ":",
    "::",
    ":::1",
    "\0",
    "a\0b",
    "\n",
    "日本",
    "x\udcffy",
)
NUMBERS = (
    "-1",
    "0",
    "1",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "\uff11",
)
ADDRESSES = (
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:-1",
    "127.0.0.1:" + "9" * 5000,
    "[::1]:4433",
    "[::1%lo]:4433",
    "[::1:4433",
    "::1:4433",
    "256.0.0.1:1",
    "localhost:4434",
    "a..b:4434",
    "." + "a" * 300 + ":4434",
    "\udcff:4434",
    "日本:4434",
    "x\0y:4434",
)
URLS = (
    "https://[",
    "https://[::1]:0/",
    "https://]:1/",
    "https://a..b/",
    "https://" + "a" * 300 + "/",
    "https://日本..x/",
    "https://\udcff/",
    "https://127.0.0.1:99999999999999999999/",
    "https://127.0.0.1:1/\udcff?日本#\0",
    "https://user:pass@127.0.0.1:1/",
    "https:///",
    "file:///etc/passwd",
    "https://127.0.0.1:1/a b",
    "https://%00:1/",
    "https://xn--a:1/",
)
HEADERS = (
    "x-name: 日本",
    "x: \0",
    "x: a\nb: c",
    "日本: x",
    ": x",
    ":path: /",
    "x:\udcff",
    "Connection: close",
    "content-length: -1",
    "content-length: 9",
    "host: [",
    "te: gzip",
)
APPLICATIONS = (
    "app",
    ":",
    "a:",
    ":b",
    "a:b:c",
    "..:x",
    ".x:y",
    "a\0b:c",
    "日本:x",
    "\udcff:x",
    "os.:x",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Files that are not what they should be, and two identities."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "garbage").write_bytes(bytes(range(256)) * 10)
    (folder / "empty").touch()
    (folder / "directory").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "unreadable").touch(0o000)
    make_identities(folder / "identities", ["a", "b"])
    identity = folder / "identities" / "a"
    (folder / "bad").mkdir()
    for name in ("certificate.pem", "key.pem", "peers.pem"):
        (folder / "bad" / name).write_bytes(b"-----BEGIN CERTIFICATE-----\n\xff")
    names = (
        "garbage",
        "empty",
        "directory",
        "loop",
        "unreadable",
        "bad",
        "missing",
        "missing/file",
    )
    paths = (*(str(folder / name) for name in names), "/", "/dev/null", "/proc/self/mem", "a\0b")
    return SimpleNamespace(folder=folder, identity=str(identity), paths=(*paths, "x" * 5000))


def odd(files: SimpleNamespace) -> st.SearchStrategy[str]:
    known = (*TEXTS, *NUMBERS, *ADDRESSES, *URLS, *HEADERS, *APPLICATIONS, *files.paths)
    at = tuple(f"@{path}" for path in files.paths)
    anything = st.text(st.characters(exclude_categories=()), max_size=20)
    return st.sampled_from((*known, *at)) | anything


def value(parameter: click.Parameter, files: SimpleNamespace) -> st.SearchStrategy[str]:
    """Return values of a parameter, sensible ones among them."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return st.sampled_from([str(choice) for choice in kind.choices]) | odd(files)
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return st.sampled_from(NUMBERS) | odd(files)
    if isinstance(kind, click.Path):
        return st.sampled_from(files.paths) | odd(files)
    return odd(files)


@st.composite
def arguments(
    draw: st.DrawFn, command: click.Command, files: SimpleNamespace, most: int = 4
) -> list[str]:
    """Return a command line."""
    words: list[str] = []
    options = [each for each in command.params if isinstance(each, click.Option)]
    for option in draw(st.lists(st.sampled_from(options), max_size=most)):
        words.append(option.opts[0])
        if not option.is_flag:
            words.append(draw(value(option, files)))
    for argument in command.params:
        if isinstance(argument, click.Argument):
            count = 1 if argument.nargs == 1 else draw(st.integers(0, 3))
            words += [draw(value(argument, files)) for _ in range(count)]
    return words


@pytest.fixture(autouse=True)
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody find a server that happens to run."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"input\xff")))


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_any_arguments_are_parsed_or_refused(
    path: tuple[str, ...], files: SimpleNamespace, no_input: None
) -> None:
    command = LEAVES[path]
    root = main.make_context("quicferry", [], resilient_parsing=True)

    @FEW
    @given(arguments(command, files))
    def parse(words: list[str]) -> None:
        with contextlib.suppress(click.ClickException, click.exceptions.Exit, QuicferryError):
            command.make_context(path[-1], words, root)

    parse()


def run(*words: str) -> None:
    result = CliRunner().invoke(main, words, prog_name="quicferry")
    assert "internal error" not in result.stderr, (words, result.stderr)
    assert "Traceback" not in result.stderr, (words, result.stderr)
    assert result.exception is None or isinstance(result.exception, SystemExit), words
    if result.exit_code:
        assert result.stderr, words


def run_with(path: tuple[str, ...], files: SimpleNamespace, *fixed: str) -> None:
    """Run a command with any arguments before those that are fixed."""

    @FEW
    @given(arguments(LEAVES[path], files, 3))
    def carry_out(words: list[str]) -> None:
        run(*path, *fixed, *words)

    carry_out()


# What follows is carried out, as far as it comes. The last of an option counts.


@pytest.mark.parametrize("url", URLS)
def test_any_url(url: str) -> None:
    run("fetch", "--insecure", "--timeout", "0.05", url)
    run("fetch", "--insecure", "--timeout", "0.05", url.removeprefix("https://"))


@pytest.mark.parametrize("header", HEADERS)
def test_any_header(header: str) -> None:
    run("fetch", "--insecure", "--timeout", "0.05", "https://127.0.0.1:1/", "-H", header)


@pytest.mark.parametrize("method", TEXTS)
def test_any_method(method: str) -> None:
    run("fetch", "--insecure", "--timeout", "0.05", "https://127.0.0.1:1/", "-X", method)


def test_any_file(files: SimpleNamespace) -> None:
    for path in files.paths:
        url = "https://127.0.0.1:1/"
        for option in ("--ca", "--qlog", "--output", "--data", "--json"):
            given = [] if option == "--json" else [f"@{path}" if option == "--data" else path]
            run("fetch", "--timeout", "0.05", url, option, *given)
        run("serve", "quicferry_lab.demo.app:app", "--cert", path, "--key", path)
        run("serve", "no.such.module:app", "--socket", path, "--qlog", path)
        run("ctl", "--socket", path, "status")
        run("ctl", "--socket", path, "status", "--qlog", path)
        run("agent", "run", "quicferry_lab.demo.app:app", "--identity", path)
        run("agent", "receive", "--bundle", path, "--container", "site", "--identity", path)
        run("migrate", "--to", "127.0.0.1:1", "--identity", path, "--socket", path)
        run("migrate", "--to", "127.0.0.1:1", "--identity", files.identity, "--socket", path)


@pytest.mark.parametrize("application", APPLICATIONS)
def test_any_application(application: str, files: SimpleNamespace) -> None:
    run("serve", application, "--bind", "192.0.2.1:0")
    run("agent", "run", application, "--identity", files.identity, "--listen", "192.0.2.1:0")


@pytest.mark.parametrize("address", ADDRESSES)
def test_any_address(address: str, files: SimpleNamespace) -> None:
    socket = str(files.folder / "missing")
    run("migrate", "--to", address, "--identity", files.identity, "--socket", socket)
    for command in ("imminent", "switch", "migrate"):
        run("ctl", "--socket", socket, command, address)
    run("serve", "no.such.module:app", "--bind", address, "--pool", address)


def test_any_names_of_hosts(files: SimpleNamespace) -> None:
    out = files.folder / "out"
    for name in (*TEXTS, *ADDRESSES, *files.paths, "." * 300, "ü", "a" * 300):
        run("agent", "init", "--out", str(out), "host.example", name)


@pytest.mark.parametrize("name", ["status", "imminent", "switch", "wait", "migrate", "abort"])
def test_any_order(name: str, files: SimpleNamespace) -> None:
    run_with(("ctl", name), files)


def test_any_migration(files: SimpleNamespace) -> None:
    run_with(("migrate",), files, "--to", "127.0.0.1:1", "--identity", files.identity)
