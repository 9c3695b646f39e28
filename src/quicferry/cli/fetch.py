"""`quicferry fetch`: an HTTP/3 client in the manner of curl, which follows a server that moves."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import quicferry
from quicferry.cli.events import describe_event, encode_event
from quicferry.cli.fetch_output import Output, OutputError, open_output
from quicferry.cli.help import Command
from quicferry.cli.options import (
    Number,
    json_option,
    open_secrets_log,
    protocols_option,
    qlog_logger,
    qlog_option,
)
from quicferry.cli.output import say_aside
from quicferry.cli.url import parse_url
from quicferry.client import HttpClient, RequestRejected, request_head
from quicferry.io import BindError, ConnectFailed, ConnectionLost, TraceError
from quicferry.protocol import (
    ClientMigration,
    ConnectionClosed,
    MigrationEvent,
    MigrationProtocol,
    Policy,
    QuicferryError,
    Scheduler,
)
from quicferry.transport import Configuration, CredentialError

DEFAULT_TIMEOUT = 30.0

# Where curl has an exit status for something, it is used here too.
COULD_NOT_RESOLVE = 6
COULD_NOT_CONNECT = 7
HTTP_ERROR = 22
WRITE_ERROR = 23
TIMED_OUT = 28
CONNECTION_LOST = 56
CERTIFICATE_REFUSED = 60
AUTHORITIES_UNREADABLE = 77

REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that are idempotent (RFC 9110 9.2.2)."""

FORM = "application/x-www-form-urlencoded"
"""What curl takes the data of -d for, and what applications expect of forms."""

CERTIFICATE_ALERTS = {0x100 + alert for alert in (42, 43, 44, 45, 46, 48)}
"""QUIC connection errors that stand for a TLS alert about a certificate (RFC 9001 4.8)."""


def header(text: str) -> tuple[str, str]:
    """Parse a header field as curl writes it."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{text!r} is not a header; write 'name: value'")
    return name.strip().lower(), value.strip()


def data(text: str) -> bytes:
    """Read a body: the text itself, or with an @ the file of that name."""
    if text == "@-":
        return sys.stdin.buffer.read()
    if not text.startswith("@"):
        return text.encode()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as exc:
        raise click.BadParameter(f"cannot read {text[1:]}: {exc.strerror}") from exc


class FetchError(QuicferryError):
    """A fetch failed.

    Attributes:
        status: The exit status that says why.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class FetchOptions:
    """What the options of `quicferry fetch` say."""

    host: str
    port: int
    path: str
    method: str
    data: bytes
    headers: tuple[tuple[str, str], ...]
    output: Path | None
    repeat: int
    interval: float
    timeout: float
    fail: bool
    as_json: bool


@click.command(
    cls=Command,
    examples=(
        "quicferry fetch https://127.0.0.1:4433/ --insecure",
        "quicferry fetch https://example.org/upload -d @photo.jpg -H 'content-type: image/jpeg'",
        "quicferry fetch https://127.0.0.1:4433/ --insecure --repeat 100 --interval 0.1",
    ),
    epilog="Exit status: 0 success, 1 failure, 2 wrong usage, and as with curl: 6 unknown host, "
    "7 could not connect, 22 status 400 or above with --fail, 23 cannot write the output, "
    "28 timeout, 56 connection lost, 60 certificate refused, 77 --ca cannot be read.\n\n"
    'With --json: for each response a line {"event": "response", "url", "status", "headers", '
    '"bytes", "seconds", "server"}, without -o also "body" or "body_base64", a line '
    '{"event": "reconnecting", "reason"} when --repeat goes on on another connection, and a line '
    "for each migration event.\n\n"
    "With SSLKEYLOGFILE=FILE in the environment, TLS secrets are appended to that file.",
)
@click.argument("url")
@click.option("-X", "--request", "method", help="Method; GET by default, POST with -d.")
@click.option(
    "-d",
    "--data",
    type=data,
    metavar="DATA|@FILE",
    help="Body; @FILE reads a file, @- standard input. It is sent as a form, unless -H gives "
    "another content-type.",
)
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    type=header,
    metavar="NAME: VALUE",
    help="Can be repeated.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the body there; - is stdout, the default.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Ask so many times over one connection, or another one if the server ends it; the "
    "bodies follow each other.",
)
@click.option(
    "--interval",
    type=Number(min=0),
    default=0.0,
    show_default=True,
    help="Seconds between two requests of --repeat.",
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trust the certificates in this PEM file.",
)
@click.option("--insecure", is_flag=True, help="Accept any certificate.")
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.EAGER.value,
    show_default=True,
    help="When to look for a server that said where it will move.",
)
@click.option(
    "--scheduler",
    type=click.Choice([scheduler.value for scheduler in Scheduler]),
    default=Scheduler.PARALLEL.value,
    show_default=True,
    help="In which order to try the addresses of a pool.",
)
@protocols_option
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds that connecting, and each request, may take.",
)
@click.option("--fail", is_flag=True, help="Fail when the status is 400 or above.")
@json_option
@qlog_option
def fetch(
    url: str,
    *,
    ca: Path | None,
    insecure: bool,
    policy: str,
    scheduler: str,
    protocols: MigrationProtocol | None,
    qlog: Path | None,
    **options: Any,
) -> None:
    """Fetch URL (https://host[:port]/path) over HTTP/3.

    URLs are read as curl reads them: a user and password, an IPv6 address with a zone and an
    international name may be in them, and the scheme may be left out.

    When the server moves, the connection moves with it; stderr tells, lines starting with *.
    """
    what = _options(url, **options)
    _check_request(what)
    migration = None
    if protocols is not None:
        migration = ClientMigration(
            protocols=protocols, policy=Policy(policy), scheduler=Scheduler(scheduler)
        )
    try:
        with _errors_explained(what):
            configuration = Configuration(
                is_client=True,
                alpn_protocols=["h3"],
                server_migration=migration,
                quic_logger=qlog_logger(qlog),
                secrets_log_file=open_secrets_log(),
                verify_mode=ssl.CERT_NONE if insecure else ssl.CERT_REQUIRED,
            )
            if ca is not None:
                configuration.load_verify_locations(cafile=str(ca))
            asyncio.run(_fetch(what, configuration))
    except FetchError as exc:
        say_aside(f"Error: {exc}")
        sys.exit(exc.status)


def _options(
    url: str,
    *,
    method: str | None,
    data: bytes | None,
    headers: tuple[tuple[str, str], ...],
    **options: Any,
) -> FetchOptions:
    try:
        parsed = parse_url(url)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    names = {name for name, _ in headers}
    if parsed.authorization is not None and "authorization" not in names:
        headers = (*headers, ("authorization", parsed.authorization))
    if data is not None and "content-type" not in names:
        headers = (*headers, ("content-type", FORM))
    return FetchOptions(
        host=parsed.host,
        port=parsed.port,
        path=parsed.path,
        method=(method or ("GET" if data is None else "POST")).upper(),
        data=data or b"",
        headers=headers,
        **options,
    )


def _check_request(options: FetchOptions) -> None:
    """Refuse what HTTP/3 does not allow, and say what it has no use for."""
    try:
        # The host is looked at where it is resolved.
        _, left_out = request_head(options.method, options.path, "localhost", options.headers)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    for name in left_out:
        say_aside(f"warning: left out {name}, which HTTP/3 does not have")


async def _fetch(options: FetchOptions, configuration: Configuration) -> None:
    with open_output(options.output, as_json=options.as_json) as output:

        def on_migration_event(event: MigrationEvent) -> None:
            if isinstance(event, ConnectionClosed):
                return  # no news: either it is us who close, or an error follows
            if options.as_json:
                output.say(encode_event(event))
            else:
                say_aside(f"* {describe_event(event)}")

        async def say_lost(reason: QuicferryError) -> None:
            if options.as_json:
                await output.tell({"event": "reconnecting", "reason": str(reason)})
            else:
                say_aside(f"* {reason}; connecting again")

        done = 0
        async with asyncio.timeout(options.timeout) as limit:
            while done < options.repeat:
                async with quicferry.connect(
                    options.host,
                    options.port,
                    configuration=configuration,
                    create_protocol=HttpClient,
                ) as http:
                    http.on_migration_event(on_migration_event)
                    with http.kept_open():
                        count = options.repeat - done
                        done += await _repeat(http, count, options, output, limit, say_lost)


async def _repeat(
    http: HttpClient,
    count: int,
    options: FetchOptions,
    output: Output,
    limit: asyncio.Timeout,
    say_lost: Callable[[QuicferryError], Awaitable[None]],
) -> int:
    """Ask so many times on one connection; return how often before the server has ended it."""
    loop = asyncio.get_running_loop()
    for done in range(count):
        if done:
            limit.reschedule(None)
            await asyncio.sleep(options.interval)
        limit.reschedule(loop.time() + options.timeout)
        if done and http.closed_by is not None:
            await say_lost(http.closed_by)
            return done
        try:
            await _exchange(http, options, output)
        except (ConnectionLost, RequestRejected) as exc:
            if not done or not _is_repeatable(exc, options, output):
                raise
            await say_lost(exc)
            return done
    return count


def _is_repeatable(error: QuicferryError, options: FetchOptions, output: Output) -> bool:
    """Whether a request that failed on a connection may be sent again on another one.

    It may if the server has not looked at it (RFC 9114 4.1.1, 5.2), or if to do it twice has the
    effect of doing it once (RFC 9110 9.2.2); and if nothing of a response was put out.
    """
    is_safe = isinstance(error, RequestRejected) or options.method in REPEATABLE
    return is_safe and output.is_between


async def _exchange(http: HttpClient, options: FetchOptions, output: Output) -> None:
    started = time.monotonic()
    size = 0
    async with http.stream(
        options.method, options.path, headers=options.headers, body=options.data
    ) as response:
        if options.fail and response.status >= 400:
            raise FetchError(f"the server answered with status {response.status}", HTTP_ERROR)
        async for chunk in response:
            size += len(chunk)
            await output.body(chunk)
    await output.end(
        {
            "event": "response",
            "url": f"https://{http.remote}{options.path}",
            "status": response.status,
            "headers": response.headers,
            "bytes": size,
            "seconds": round(time.monotonic() - started, 6),
            "server": str(http.server_address),
        }
    )


@contextmanager
def _errors_explained(options: FetchOptions) -> Iterator[None]:
    """Turn what can go wrong into messages and exit statuses."""
    try:
        yield
    except TimeoutError as exc:
        raise FetchError(
            f"no complete answer within {options.timeout:g} s; --timeout allows more", TIMED_OUT
        ) from exc
    except ConnectFailed as exc:
        if exc.error_code in CERTIFICATE_ALERTS:
            raise FetchError(
                f"{exc}; --ca FILE trusts a certificate, --insecure trusts any",
                CERTIFICATE_REFUSED,
            ) from exc
        raise FetchError(str(exc), COULD_NOT_CONNECT) from exc
    except BindError as exc:
        raise FetchError(str(exc), COULD_NOT_CONNECT) from exc
    except ConnectionLost as exc:
        raise FetchError(str(exc), CONNECTION_LOST) from exc
    except socket.gaierror as exc:
        raise FetchError(
            f"cannot find {options.host}: {exc.strerror}; check the name", COULD_NOT_RESOLVE
        ) from exc
    except (OutputError, TraceError) as exc:
        raise FetchError(str(exc), WRITE_ERROR) from exc
    except CredentialError as exc:
        raise FetchError(f"--ca: {exc}", AUTHORITIES_UNREADABLE) from exc
