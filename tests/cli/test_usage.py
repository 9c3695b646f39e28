"""What needs no network: help, versions, wrong usage."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cli.all_commands import GROUPS, LEAVES
from cli.command_line import DEMO_APP
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

import quicferry
from quicferry.cli import main
from quicferry.cli.ctl import find_socket
from quicferry.relocation import make_identities


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="quicferry")
    assert result.output == f"quicferry {quicferry.__version__}\n"


@pytest.mark.parametrize("path", [*GROUPS, *LEAVES], ids=" ".join)
def test_help_teaches(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"], prog_name="quicferry")
    assert result.exit_code == 0
    assert "Usage: quicferry" in result.output
    if path not in (("ctl", "abort"), ("ctl", "shutdown")):
        assert "Examples:\n  " in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["move"], "No such command"),
        (["serve"], "Missing argument"),
        (["serve", "no-colon"], "must be module:attribute"),
        (["serve", "a:b", "--bind", "localhost"], "is not an address"),
        (["serve", "a:b", "--bind", "127.0.0.1:99999"], "is not an address"),
        (["serve", "a:b", "--cert", __file__], "--cert and --key belong together"),
        (["serve", "a:b", "--cert", "/nowhere", "--key", __file__], "does not exist"),
        (["serve", "a:b", "--pool", "127.0.0.2"], "is not an address"),
        (["serve", "a:b", "--pool", "1.2.3.4:5", "--pool", "1.2.3.4:5"], "each different"),
        (["serve", "a:b", "--protocols", "teleport"], "unknown migration protocol"),
        (["serve", "a:b", "--protocols", "none", "--pool", "1.2.3.4:5"], "--pool is of no use"),
        (["serve", "a:b", "--linger", "-1"], "-1"),
        (["fetch"], "Missing argument"),
        (["fetch", "http://127.0.0.1/"], "is not an address like https://"),
        (["fetch", "https://"], "is not an address like https://"),
        (["fetch", "https://a:b/"], "no valid port"),
        (["fetch", "https://[::1/"], "is not an address like https://"),
        (["fetch", "ftp://a/"], "only https"),
        (["fetch", "https://a:0/"], "no valid port"),
        (["fetch", "https://a\n/"], "control character"),
        (["fetch", "https://a/", "-H", "no colon"], "is not a header"),
        (["fetch", "https://a/", "-H", "x y: 1"], "does not allow this request"),
        (["fetch", "https://a/", "-H", "x: 日本"], "percent-encode"),
        (["fetch", "https://a/", "-H", "content-length: many"], "does not allow this request"),
        (["fetch", "https://a/", "-X", "B AD"], "does not allow this request"),
        (["fetch", "https://a/", "-d", "@/nowhere"], "cannot read /nowhere"),
        (["fetch", "https://a/", "--repeat", "0"], "0"),
        (["fetch", "https://a/", "--policy", "lazy"], "lazy"),
        (["ctl"], "Usage"),
        (["ctl", "switch"], "Missing argument"),
        (["ctl", "imminent", "here"], "is not an address"),
        (["ctl", "imminent", "--protocol", "teleport"], "teleport"),
        (["demo", "--rtt", "1:2:3"], "neither a number nor two"),
        (["demo", "--rtt", "fast"], "neither a number nor two"),
        (["demo", "--rate", "-1"], "not between"),
        (["demo", "--loss", "1:101"], "not between"),
        (["demo", "--plot", "moves.txt"], "must end in"),
        (["demo", "--technique", "magic"], "magic"),
        (["demo", "--rtt", "inf"], "not between"),
        (["demo", "--rtt", "nan"], "not between"),
        (["demo", "--clients", "9" * 30], "not in the range"),
        (["fetch", "https://a/", "--interval", "nan"], "not a finite number"),
        (["fetch", "https://a/", "--timeout", "inf"], "not a finite number"),
        (["ctl", "wait", "--timeout", "nan"], "not a finite number"),
        (["fetch", "https://a/", "-o", "a\0b"], "NUL character"),
        (["lab", "sweep", "--seeds", "1..99999999999999999999"], "more than 1,000,000 seeds"),
        (["image", "app:app", "--user", "4294967295"], "not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_application_that_is_not_there() -> None:
    result = CliRunner().invoke(main, ["serve", "no_such_module:app"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cannot import no_such_module")


def test_application_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_application.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = CliRunner().invoke(main, ["serve", "broken_application:app"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cannot import broken_application: ZeroDivisionError")
    assert "Traceback" not in result.stderr


def test_application_that_is_none() -> None:
    result = CliRunner().invoke(main, ["serve", "json:nothing"])
    assert result.exit_code == 1
    assert result.stderr == "Error: json has no ASGI application called nothing\n"


def test_no_server_to_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    result = CliRunner().invoke(main, ["ctl", "status"])
    assert result.exit_code == 1
    assert "no server runs" in result.stderr


def test_several_servers_to_choose_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "quicferry").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for number, sock in enumerate((one, two), 1):
            sock.bind(str(tmp_path / "quicferry" / f"{number}.sock"))
            sock.listen()
        result = CliRunner().invoke(main, ["ctl", "status"])
        assert result.exit_code == 1
        assert "choose one with --socket" in result.stderr
        two.close()  # as if its server had been killed: the name stays
        assert find_socket() == tmp_path / "quicferry" / "1.sock"
    result = CliRunner().invoke(main, ["ctl", "status"])
    assert "no server runs" in result.stderr


@pytest.mark.parametrize("command", [["serve"], ["agent", "run"], ["image"]], ids=" ".join)
@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("a/certificate.pem", "b/key.pem", "b/key.pem is not the key of the certificate in"),
        ("a/certificate.pem", "encrypted.pem", "encrypted.pem is encrypted"),
        ("a/key.pem", "a/key.pem", "a/key.pem holds no certificate"),
        ("a/certificate.pem", "a/certificate.pem", "a/certificate.pem holds no private key"),
    ],
)
def test_certificates_that_no_client_could_use(
    command: list[str],
    certificate: str,
    key: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_identities(Path(), ["a", "b"])
    password = BestAvailableEncryption(b"sesame")
    own_key = load_pem_private_key(Path("a/key.pem").read_bytes(), None)
    encrypted = own_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password)
    Path("encrypted.pem").write_bytes(encrypted)
    identity = ["--identity", "a"] if command == ["agent", "run"] else []
    arguments = [*command, DEMO_APP, "--cert", certificate, "--key", key, *identity]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
