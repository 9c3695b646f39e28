"""`quicferry image`: what a container engine runs, made of an ASGI application."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from quicferry.cli.help import Command
from quicferry.cli.options import address, json_option
from quicferry.cli.output import Say
from quicferry.cli.serve import serve
from quicferry.cli.serving import say_json, say_text
from quicferry.protocol import Address
from quicferry.relocation.container.image import (
    DEFAULT_BIND,
    DEFAULT_MEMORY,
    DEFAULT_PROCESSES,
    Application,
    Bundle,
    PodmanImage,
    default_user,
    make_bundle,
    make_podman_image,
)
from quicferry.server import check_certificate
from quicferry.transport import Configuration

BUNDLE = "bundle"
PODMAN = "podman"

_LAST_USER = (1 << 32) - 2
_OURS = frozenset({"binds", "certificate", "key", "socket", "until_eof"})
"""What `serve` may not be told after ``--``, because it is told already."""


@dataclass(frozen=True)
class _Next:
    """What to do with what was made.

    Attributes:
        start: Command lines that start the container.
        watch: One that shows why it does not start.
        copy: One that brings it to the destination.
        receive: One for the destination, before it is moved.
        migrate: One that moves it.
    """

    start: tuple[str, ...]
    watch: str
    copy: str
    receive: str
    migrate: str


@click.command(
    cls=Command,
    examples=(
        "quicferry image app:app --source . --out /var/lib/site",
        "quicferry image shop.asgi:app --out /var/lib/shop --source ~/shop --requirements "
        "~/shop/requirements.txt",
        "quicferry image app:app --out /var/lib/site --source . --base /srv/trixie -- "
        "--protocols symmetric",
        "quicferry image app:app --format podman --name site --source .",
    ),
    epilog="Exit status: 0 success, 1 it cannot be made and nothing is left of it, 2 wrong "
    "usage.\n\n"
    'With --json: a line {"format", "path" or "reference", "name", "digest", "user", '
    '"socket_directory", "next"}, where "next" has the command lines "start", "watch", "copy", '
    '"receive" and "migrate".',
)
@click.argument("app")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE_OPTIONS...]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The directory to make the bundle in; it must be empty or not be there.",
)
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The application's directory, copied as it is but for .git, .venv and __pycache__. Not "
    "needed when APP comes with a package.",
)
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the application needs, as for `pip install --requirement`; wheels only.",
)
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="ROOTFS",
    help="A root file system with Python 3.11 or newer, which is copied whole.  [default: a "
    "minimal Debian, made by debootstrap from where apt gets its packages]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice([BUNDLE, PODMAN]),
    default=BUNDLE,
    show_default=True,
    help="A directory for runc, or an image in this host's Podman.",
)
@click.option(
    "--name",
    help="The name of the container, the same on all hosts.  [default: the name of the bundle's "
    "directory]",
)
@click.option(
    "--bind",
    type=address,
    metavar="HOST:PORT",
    default=str(DEFAULT_BIND),
    show_default=True,
    help="Where the server listens; it has the host's network.",
)
@click.option(
    "--cert",
    "certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate chain for clients, PEM. Without it the server makes a self-signed one.",
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private key of the certificate, PEM. The image holds it then: keep it as safe.",
)
@click.option(
    "--user",
    type=click.IntRange(0, _LAST_USER),
    metavar="UID",
    help="User and group that the server runs as, by number.  [default: 61000, or 0 where root "
    "lacks CAP_SYS_RESOURCE, without which CRIU can move only root's processes]",
)
@click.option(
    "--memory",
    type=click.IntRange(min=0),
    metavar="MB",
    default=DEFAULT_MEMORY,
    show_default=True,
    help="Megabytes of memory that the container may use; at more its server is ended. 0 for any "
    "amount, as where control groups cannot limit it.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    default=DEFAULT_PROCESSES,
    show_default=True,
    help="Processes and threads that the container may have; 0 for any number.",
)
@json_option
def image(
    app: str,
    options: tuple[str, ...],
    *,
    out: Path | None,
    base: Path | None,
    kind: str,
    name: str | None,
    bind: Address,
    user: int | None,
    memory: int,
    processes: int,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Make of the ASGI application APP (module:attribute) what a container engine runs.

    The container can be moved to another host by `quicferry migrate`. Its root file system holds a
    Python, quicferry, the application and what that needs; nothing is fetched when it runs. Options
    of `quicferry serve` can follow after --. To be run as root.
    """
    _check_usage(app, options, files)
    application = Application(
        app,
        bind=bind,
        options=options,
        user=default_user() if user is None else user,
        memory=memory,
        processes=processes,
        **files,
    )
    say = say_json if as_json else say_text

    def progress(text: str) -> None:
        if not as_json:
            say({}, f"{text} ...")

    if kind == PODMAN:
        if out is not None or name is None:
            raise click.UsageError("--format podman needs --name, and no --out")
        _tell_image(make_podman_image(application, name=name, base=base, progress=progress), say)
    elif out is None:
        raise click.UsageError("a bundle needs --out")
    else:
        name = out.absolute().name if name is None else name
        _tell_bundle(make_bundle(out, application, name=name, base=base, progress=progress), say)


def _check_usage(app: str, options: tuple[str, ...], files: dict[str, Path | None]) -> None:
    if not all(app.partition(":")):
        raise click.UsageError(f"APP must be module:attribute, for example app:app, not {app!r}")
    if (files["certificate"] is None) != (files["key"] is None):
        raise click.UsageError("--cert and --key belong together: give both or none")
    if files["certificate"] is not None:
        configuration = Configuration(is_client=False)
        configuration.load_cert_chain(files["certificate"], files["key"])
        check_certificate(configuration)
    root = click.get_current_context().find_root()
    context = click.Context(serve, root, info_name="serve")
    given, _, order = serve.make_parser(context).parse_args(list(options))
    for parameter in order:
        value = given[parameter.name or ""]
        if isinstance(parameter, click.Argument):
            if isinstance(value, str):
                raise click.UsageError(f"only options of `quicferry serve` can follow: {value}")
        elif parameter.name in _OURS:
            raise click.UsageError(f"{parameter.opts[0]} cannot follow after --; see --help")
        else:
            parameter.type_cast_value(context, value)


def _tell_bundle(bundle: Bundle, say: Say) -> None:
    path = shlex.quote(str(bundle.path))
    unpack = f"mkdir -p -m 700 {path} && tar -C {path} --numeric-owner -xp"
    after = _Next(
        start=(
            _make_socket_directory(bundle),
            f"runc run --detach --bundle {path} {bundle.name} </dev/null >/dev/null 2>&1",
        ),
        watch=f"runc run --bundle {path} {bundle.name}",
        copy=f"tar -C {path} --numeric-owner -c . | ssh HOST {shlex.quote(unpack)}",
        receive=f"quicferry agent receive --engine runc --bundle {path} --container {bundle.name} "
        "--listen HOST:4434 --identity DIR",
        migrate=_migrate(bundle.name, "runc"),
    )
    _tell(BUNDLE, {"path": str(bundle.path)}, bundle, after, say)


def _tell_image(made: PodmanImage, say: Say) -> None:
    after = _Next(
        start=(_make_socket_directory(made), shlex.join(made.command)),
        watch=f"podman logs {made.name}",
        copy=f"podman save {made.reference} | ssh HOST podman load",
        receive=f"quicferry agent receive --engine podman --image {made.reference} "
        f"--container {made.name} --listen HOST:4434 --identity DIR",
        migrate=_migrate(made.name, "podman"),
    )
    _tell(PODMAN, {"reference": made.reference}, made, after, say)


def _make_socket_directory(made: Bundle | PodmanImage) -> str:
    return f"install -d -m 700 -o {made.user} -g {made.user} {made.socket_directory}"


def _migrate(name: str, engine: str) -> str:
    return (
        f"quicferry migrate --technique cold --engine {engine} --container {name} "
        "--to HOST:4434 --identity DIR"
    )


def _tell(
    kind: str, where: dict[str, str], made: Bundle | PodmanImage, after: _Next, say: Say
) -> None:
    described: dict[str, Any] = {
        "format": kind,
        **where,
        "name": made.name,
        "digest": made.digest,
        "user": made.user,
        "socket_directory": str(made.socket_directory),
        "next": vars(after),
    }
    say(
        described,
        f"made {', '.join(where.values())}, {made.digest}",
        f"  the server in it runs as user {made.user}",
        *("  start it:", *(f"    {line}" for line in after.start)),
        *("  see why it does not start:", f"    {after.watch}"),
        *("  copy it to another host, because both need the same:", f"    {after.copy}"),
        *("  wait for it there:", f"    {after.receive}"),
        *("  move it:", f"    {after.migrate}"),
    )
