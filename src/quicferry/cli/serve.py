"""`quicferry serve`: an ASGI application behind a server that can move."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import quicferry
from quicferry import __version__
from quicferry.cli.events import describe_event
from quicferry.cli.help import Command
from quicferry.cli.options import (
    address,
    common_options,
    json_option,
    open_secrets_log,
    pool_address,
    protocols_option,
    qlog_logger,
)
from quicferry.protocol import (
    Address,
    MigrationAddress,
    MigrationProtocol,
    ServerMigration,
)
from quicferry.server import (
    ApplicationError,
    ConfigurationError,
    ManagementServer,
    PhaseChanged,
    Server,
    default_management_path,
    self_signed,
)
from quicferry.server.commands import describe_event as encode_event
from quicferry.transport import Configuration

logger = logging.getLogger("quicferry.cli")

DEFAULT_BIND = "127.0.0.1:4433"
DEFAULT_LINGER = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class ServeOptions:
    """What the options of `quicferry serve` say."""

    application: str
    bind: Address
    certificate: Path | None
    key: Path | None
    socket: Path | None
    migration: ServerMigration | None
    retry: bool
    linger: float
    until_eof: bool
    qlog: Path | None


@click.command(
    cls=Command,
    examples=(
        "quicferry serve quicferry.lab.demo.app:app",
        "quicferry serve site.asgi:application --bind 0.0.0.0:443 --cert chain.pem --key key.pem",
        "quicferry serve app:app --pool 192.0.2.7:443 --pool 198.51.100.9:443",
    ),
    epilog="Exit status: 0 after SIGINT, SIGTERM or `quicferry ctl shutdown`, 1 when it cannot "
    "start, 2 wrong usage.\n\n"
    'With --json: a line {"event": "listening", "address", "management_socket", "certificate", '
    '"pid"}, then a line for each migration event.\n\n'
    "With SSLKEYLOGFILE=FILE in the environment, TLS secrets are appended to that file.",
)
@click.argument("app")
@click.option(
    "--bind",
    type=address,
    metavar="HOST:PORT",
    default=DEFAULT_BIND,
    show_default=True,
    help="Where to listen; port 0 stands for any free one.",
)
@click.option(
    "--cert",
    "certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate chain, PEM. Without it a self-signed one is made.",
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private key of the certificate, PEM.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="Path of the management socket. By default one named after the process.",
)
@protocols_option
@click.option(
    "--pool",
    multiple=True,
    type=pool_address,
    metavar="ADDR[,ADDR]",
    help="An address where the server may come up later (Pool of Addresses); can be repeated.",
)
@click.option(
    "--retry", is_flag=True, help="Validate client addresses with a Retry packet (RFC 9000 8.1.2)."
)
@click.option(
    "--linger",
    type=click.FloatRange(min=0),
    default=DEFAULT_LINGER,
    show_default=True,
    help="Seconds to go on receiving at an address after moving away from it.",
)
@click.option("--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends.")
@json_option
@common_options
def serve(
    app: str,
    *,
    protocols: MigrationProtocol | None,
    pool: tuple[MigrationAddress, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Serve the ASGI application APP (module:attribute) over HTTP/3.

    The server is moved through its management socket, whose path it prints: see `quicferry ctl`.
    SIGINT or SIGTERM stop it.
    """
    parsed = ServeOptions(application=app, migration=_migration(protocols, pool), **options)
    if (parsed.certificate is None) != (parsed.key is None):
        raise click.UsageError("--cert and --key belong together: give both or none")
    say = _say_json if as_json else _say_text
    asyncio.run(_serve(parsed, load_application(app), say))


def load_application(name: str) -> Any:
    """Return the application called ``module:attribute``, from the current directory or installed.

    Raises:
        ApplicationError: There is no such module or attribute, or it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise click.UsageError(f"APP must be module:attribute, for example app:app, not {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        application: Any = importlib.import_module(module_name)
    except Exception as exc:
        logger.debug("importing %s", module_name, exc_info=exc)
        raise ApplicationError(
            f"cannot import {module_name}: {type(exc).__name__}: {exc}; run this where the module "
            "can be imported (--log-level debug shows more)"
        ) from exc
    for part in attribute.split("."):
        application = getattr(application, part, None)
    if not callable(application):
        raise ApplicationError(f"{module_name} has no ASGI application called {attribute}")
    return application


Say = Callable[[dict[str, Any], str], None]
"""Tells about something: as an object for programs, and in words for people."""


def _say_json(event: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(event))


def _say_text(event: dict[str, Any], text: str) -> None:
    if text:
        click.echo(text, err=True)


async def _serve(options: ServeOptions, application: Any, say: Say) -> None:
    async with AsyncExitStack() as stack:
        stopped = stack.enter_context(_stop_requests(options))
        certificate, key = options.certificate, options.key
        if certificate is None or key is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quicferry-")))
            certificate, key = _make_certificate(options.bind, folder)
            click.echo(
                "warning: no certificate was given, so a self-signed one was made; "
                f"clients must trust it (--ca {certificate}) or trust anyone (--insecure)",
                err=True,
            )
        server = await quicferry.serve(
            str(options.bind.host),
            options.bind.port,
            configuration=_configuration(options, certificate, key),
            app=application,
            retry=options.retry,
            linger=options.linger,
        )
        stack.push_async_callback(server.close)
        socket = options.socket or default_management_path()
        await stack.enter_async_context(ManagementServer(server, socket))
        say(
            {
                "event": "listening",
                "address": str(server.address),
                "management_socket": str(socket),
                "certificate": str(certificate),
                "pid": os.getpid(),
            },
            f"quicferry {__version__} serves {options.application}\n"
            f"  listening on       https://{server.address}/\n"
            f"  management socket  {socket}",
        )
        await _until_stopped(server, stopped, say)
        say({"event": "stopped"}, "stopped")


def _migration(
    protocols: MigrationProtocol | None, pool: tuple[MigrationAddress, ...]
) -> ServerMigration | None:
    if protocols is None:
        if pool:
            raise click.UsageError("--pool is of no use when --protocols none switches it off")
        return None
    try:
        return ServerMigration(protocols=protocols, pool=pool)
    except ValueError as exc:
        raise click.UsageError(f"--pool: {exc}") from exc


def _make_certificate(bind: Address, folder: Path) -> tuple[Path, Path]:
    certificate, key = self_signed([str(bind.host), "localhost"])
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate)
    key_path.touch(mode=0o600)
    key_path.write_bytes(key)
    return certificate_path, key_path


def _configuration(options: ServeOptions, certificate: Path, key: Path) -> Configuration:
    configuration = Configuration(
        is_client=False,
        alpn_protocols=["h3"],
        server_migration=options.migration,
        quic_logger=qlog_logger(options.qlog),
        secrets_log_file=open_secrets_log(),
    )
    try:
        configuration.load_cert_chain(certificate, key)
    except ValueError as exc:
        raise ConfigurationError(f"cannot use {certificate} and {key}: {exc}") from exc
    return configuration


@contextmanager
def _stop_requests(options: ServeOptions) -> Iterator[asyncio.Event]:
    """Provide an event that is set by a signal, or by the end of the input if that counts."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    if options.until_eof:
        loop.add_reader(sys.stdin, _watch_input, stopped)
    try:
        yield stopped
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


def _watch_input(stopped: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin)
        stopped.set()


async def _until_stopped(server: Server, stopped: asyncio.Event, say: Say) -> None:
    """Report events until the server is to stop, or has been told so by a management command."""
    waits = [
        asyncio.create_task(stopped.wait()),
        asyncio.create_task(server.wait_closed()),
    ]
    events = asyncio.create_task(_report_events(server, say))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*waits, events):
            task.cancel()


async def _report_events(server: Server, say: Say) -> None:
    async for happened in server.events():
        match happened.event:
            case PhaseChanged(phase):
                text = f"{phase.value} at {server.address}"
            case event:
                text = ""
                logger.info("%s: %s", happened.connection_id, describe_event(event))
        say(encode_event(happened), text)
