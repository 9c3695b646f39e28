"""What `quicferry serve` and `quicferry agent run` have in common: how an application is served."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from quicferry.cli.enter import input_ended
from quicferry.cli.events import describe_event
from quicferry.cli.options import (
    Number,
    json_option,
    open_secrets_log,
    pool_address,
    protocols_option,
    qlog_logger,
    qlog_option,
)
from quicferry.cli.output import Say, say_aside, say_object
from quicferry.io import DEFAULT_MAX_HALF_OPEN
from quicferry.protocol import MigrationAddress, MigrationProtocol, ServerMigration
from quicferry.server import (
    DEFAULT_LIMIT_CONCURRENCY,
    DEFAULT_STARTUP_TIMEOUT,
    ApplicationError,
    PhaseChanged,
    RelocationEvent,
    Server,
    load_key,
    self_signed,
    working_memory,
)
from quicferry.server.commands import describe_event as encode_event
from quicferry.transport import Configuration

logger = logging.getLogger("quicferry.cli")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEFAULT_LINGER = 1.0
DEFAULT_GRACE = 30.0
MOST_STREAMS = 1 << 20
MOST_HEADER_SIZE = 1 << 20

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Serving:
    """What the options say about how an application is served.

    Attributes:
        application: Its name, ``module:attribute``.
        certificate: A file; None for one that is made.
        key: A file; None if there is no certificate.
        socket: The path of the management socket; None for the default.
        migration: The choices about server migration; None where it is off.
        retry: Whether clients have to prove their address.
        max_half_open: How many connections there may be whose handshake is under way.
        key_file: A file with what outlives the process; None for nothing.
        linger: Seconds for which a former address is listened at.
        startup_timeout: Seconds that the application has to start.
        limit_concurrency: Requests that the application may work on at once.
        max_streams: Requests that a client may have open at once.
        max_header_size: Bytes of a request's header.
        max_header_fields: Its fields.
        grace: Seconds that running requests have to end when the program is to stop.
        until_eof: Whether the end of the input ends the program.
        qlog: A directory for traces.
    """

    application: str
    certificate: Path | None
    key: Path | None
    socket: Path | None
    migration: ServerMigration | None
    retry: bool
    max_half_open: int
    key_file: Path | None
    linger: float
    startup_timeout: float
    limit_concurrency: int
    max_streams: int
    max_header_size: int
    max_header_fields: int
    grace: float
    until_eof: bool
    qlog: Path | None

    def load_key(self) -> bytes | None:
        """Return what is in the key file.

        Raises:
            ConfigurationError: If that cannot be used.
        """
        return None if self.key_file is None else load_key(self.key_file)

    @classmethod
    def of(
        cls,
        protocols: MigrationProtocol | None,
        pool: tuple[MigrationAddress, ...],
        **options: Any,
    ) -> Serving:
        """Return what the parameters of a command with `serving_options` say."""
        if (options["certificate"] is None) != (options["key"] is None):
            raise click.UsageError("--cert and --key belong together: give both or none")
        return cls(migration=_migration(protocols, pool), **options)


def serving_options(command: Command) -> Command:
    """Add the options that `Serving.of` reads."""
    options: list[Callable[[Command], Command]] = [
        click.option(
            "--cert",
            "certificate",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Certificate chain for clients, PEM. Without it a self-signed one is made.",
        ),
        click.option(
            "--key",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Private key of the certificate, PEM.",
        ),
        click.option(
            "--socket",
            type=click.Path(path_type=Path),
            help="Path of the management socket. By default one named after the process.",
        ),
        protocols_option,
        click.option(
            "--pool",
            multiple=True,
            type=pool_address,
            metavar="ADDR[,ADDR]",
            help="An address where the server may come up later (Pool of Addresses); can be "
            "repeated.",
        ),
        click.option(
            "--retry",
            is_flag=True,
            help="Validate client addresses with a Retry packet (RFC 9000 8.1.2), also while few "
            "are connecting.",
        ),
        click.option(
            "--max-half-open",
            type=click.IntRange(min=1),
            default=DEFAULT_MAX_HALF_OPEN,
            show_default=True,
            metavar="NUMBER",
            help="Connections whose handshake may be under way at once. From a tenth of it on, "
            "clients have to validate their address; a fourth of it is for one address, and more "
            "are refused.",
        ),
        click.option(
            "--key-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Secret that outlives the process; made if missing. With it, clients learn at "
            "once that a server was started anew (stateless reset, RFC 9000 10.3), and hosts that "
            "share it take each other's --retry tokens.",
        ),
        click.option(
            "--linger",
            type=Number(min=0),
            default=DEFAULT_LINGER,
            show_default=True,
            help="Seconds to go on receiving at an address after moving away from it.",
        ),
        click.option(
            "--startup-timeout",
            type=Number(min=0, min_open=True),
            default=DEFAULT_STARTUP_TIMEOUT,
            show_default=True,
            help="Seconds that the application has to start.",
        ),
        click.option(
            "--limit-concurrency",
            type=click.IntRange(min=1),
            default=DEFAULT_LIMIT_CONCURRENCY,
            show_default=True,
            help="Requests that the application may work on at once; further ones get status 503.",
        ),
        click.option(
            "--max-streams",
            type=click.IntRange(min=1, max=MOST_STREAMS),
            default=Configuration.max_streams,
            show_default=True,
            help="Requests that one client may have open at once. One that was cancelled counts "
            "until the application has ended it.",
        ),
        click.option(
            "--max-header-size",
            type=click.IntRange(min=1024, max=MOST_HEADER_SIZE),
            default=Configuration.max_header_size,
            show_default=True,
            metavar="BYTES",
            help="The largest header or trailer of a request, with 32 bytes more for each field "
            "(RFC 9114 4.2.2); a larger header gets status 431.",
        ),
        click.option(
            "--max-header-fields",
            type=click.IntRange(min=8),
            default=Configuration.max_header_fields,
            show_default=True,
            help="The most fields that it may have.",
        ),
        click.option(
            "--grace",
            type=Number(min=0),
            default=DEFAULT_GRACE,
            show_default=True,
            help="Seconds that running requests have to end after SIGINT, SIGTERM or `ctl "
            "shutdown`; a second signal ends them at once.",
        ),
        click.option(
            "--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends."
        ),
        json_option,
        qlog_option,
    ]
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


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


def make_configuration(
    serving: Serving, hosts: Sequence[str], stack: ExitStack
) -> tuple[Configuration, Path]:
    """Return the configuration of a server, and where its certificate is.

    Args:
        serving: What the options say.
        hosts: Names for the certificate, where one has to be made.
        stack: Removes at its end what is made.
    """
    certificate, key = serving.certificate, serving.key
    if certificate is None or key is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quicferry-")))
        certificate, key = _make_certificate(hosts, folder)
        say_aside(
            "warning: no certificate was given, so a self-signed one was made; "
            f"clients must trust it (--ca {certificate}) or trust anyone (--insecure)"
        )
    configuration = Configuration(
        is_client=False,
        alpn_protocols=["h3"],
        server_migration=serving.migration,
        quic_logger=qlog_logger(serving.qlog),
        secrets_log_file=open_secrets_log(),
        max_streams=serving.max_streams,
        max_header_size=serving.max_header_size,
        max_header_fields=serving.max_header_fields,
    )
    configuration.load_cert_chain(certificate, key)
    return configuration, certificate


def set_apart_what_is_loaded() -> None:
    """Set apart what has been loaded so far: it stays as long as the process does.

    The garbage collector looks no more at it, which takes tens of milliseconds in which no client
    is served; and it is known to be needed at once where memory is fetched.
    """
    gc.collect()
    gc.freeze()
    working_memory.set_apart()


def say_json(event: dict[str, Any], *lines: str) -> None:
    """Tell programs; a server goes on without those that hear no more."""
    try:
        say_object(event)
    except OSError as exc:
        logger.warning("cannot write standard output: %s; nothing more is", exc.strerror)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (for the rest of the process)


def say_text(event: dict[str, Any], *lines: str) -> None:
    """Tell people."""
    say_aside(*filter(None, lines))


class Stop:
    """Whether the program is to stop.

    Attributes:
        asked: Set by the first signal, or what else asks for it.
        urged: Set by the next one: it is to stop at once.
    """

    def __init__(self) -> None:
        self.asked, self.urged = asyncio.Event(), asyncio.Event()

    def ask(self) -> None:
        """Ask for it, or urge where it was asked for already."""
        (self.urged if self.asked.is_set() else self.asked).set()


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Provide what says whether signals have come that stop the program."""
    loop = asyncio.get_running_loop()
    stop = Stop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.ask)
    try:
        yield stop
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


@contextmanager
def stop_requests(serving: Serving) -> Iterator[Stop]:
    """Provide the same, where the end of the input counts, too, if it shall."""
    with stop_signals() as stop:
        if not serving.until_eof:
            yield stop
            return
        watching = asyncio.create_task(_stop_at_the_end_of_input(stop))
        try:
            yield stop
        finally:
            watching.cancel()


async def unless_stopped(starting: Coroutine[Any, Any, T], stop: Stop) -> T | None:
    """Return what a coroutine returns; None if it is cancelled, because the program is to stop."""
    started = asyncio.create_task(starting)
    asked = asyncio.create_task(stop.asked.wait())
    try:
        await asyncio.wait((started, asked), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            await asyncio.wait((started,))
    finally:
        asked.cancel()
    return None if started.cancelled() else started.result()


async def close_server(server: Server, stop: Stop, grace: float, say: Say) -> None:
    """Close a server when its requests have ended, at the latest when that is urged.

    Args:
        server: The server.
        stop: Whether it is urged.
        grace: Seconds that the requests have.
        say: Told if some are running.
    """
    closing = asyncio.create_task(server.close(grace))
    if grace and (running := len(server.running_requests)):
        say(
            {"event": "stopping", "running": running, "seconds": grace},
            f"stopping: requests that are running ({running}) have {grace:g} s; a second signal "
            "ends them at once",
        )
    urged = asyncio.create_task(stop.urged.wait())
    try:
        await asyncio.wait((closing, urged), return_when=asyncio.FIRST_COMPLETED)
    finally:
        urged.cancel()
    if not closing.done():
        await server.close(grace=0)
    await closing


async def report_events(server: Server, say: Say) -> None:
    """Tell what happens to a server, until it is closed."""
    async for happened in server.events():
        text = ""
        match happened.event:
            case PhaseChanged(phase):
                text = f"{phase.value} at {server.address}"
            case RelocationEvent():
                pass  # whoever moves the server says it
            case event:
                logger.info("%s: %s", happened.connection_id, describe_event(event))
        say(encode_event(happened), text)


async def _stop_at_the_end_of_input(stop: Stop) -> None:
    await input_ended()
    stop.ask()


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


def _make_certificate(hosts: Sequence[str], folder: Path) -> tuple[Path, Path]:
    certificate, key = self_signed([*dict.fromkeys(hosts), "localhost"])
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate)
    key_path.touch(mode=0o600)
    key_path.write_bytes(key)
    return certificate_path, key_path
