"""What is to run in a container, and where its parts lie there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quicferry.protocol import Address

from ..engines.engine import SOCKET_DIRECTORY, SOCKET_NAME

LIBRARY_FOLDER = "/opt/quicferry"
"""quicferry, and everything that it and the application are made of, in a container."""

SOURCE_FOLDER = "/srv/app"
"""The application itself in a container."""

TLS_FOLDER = "/etc/quicferry"
"""The certificate for clients and its key, in a container."""

LOG = "/run/server.log"
"""What a server writes to its standard error, if that goes nowhere else.

It lies in the container's own memory, so it moves along. A log outside would be a file that the
other host lacks, and a pipe would have its other end on this host.
"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the programs of a root file system are."""

NOBODY = 61000
"""A user and group without a name, in a range that neither Debian nor systemd gives to anybody."""

ROOT = 0

DEFAULT_BIND = Address.parse("0.0.0.0:4433")

_KEEP_STDERR = f'if test /dev/stderr -ef /dev/null; then exec 2>>{LOG}; fi; exec "$@"'
"""In the foreground the server can be heard; in the background it writes its log."""


_CAP_SYS_RESOURCE = 1 << 24


def default_user() -> int:
    """Return the user that a server in a container runs as, where none is named.

    It is nobody special, if CRIU can dump such a user's processes here: it needs CAP_SYS_RESOURCE
    to read their limits. Where root lacks it, as in many containers, the server has to be root by
    number; it has none of root's capabilities.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    _, _, rest = status.partition("\nCapEff:")
    return NOBODY if int(rest.split()[0], 16) & _CAP_SYS_RESOURCE else ROOT


DEFAULT_MEMORY = 1024
"""Megabytes."""
DEFAULT_PROCESSES = 512
"""Processes and threads."""


@dataclass(frozen=True)
class Application:
    """An ASGI application and how it is served.

    Attributes:
        name: ``module:attribute``.
        source: A directory that the module is in; None if it comes with a package.
        requirements: A file for ``pip install --requirement``; None if it needs nothing.
        certificate: The certificate chain for clients, PEM; None for one that is made at the start.
        key: Its private key, PEM; None if there is no certificate. It will be in the image.
        bind: Where the server listens.
        options: Further options of ``quicferry serve``.
        user: The number of the user and group that the server runs as; see `default_user`.
        memory: How much memory the container may use, in megabytes; 0 for any amount.
        processes: How many processes and threads it may have; 0 for any number.
    """

    name: str
    source: Path | None = None
    requirements: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    bind: Address = DEFAULT_BIND
    options: tuple[str, ...] = ()
    user: int = field(default_factory=default_user)
    memory: int = DEFAULT_MEMORY
    processes: int = DEFAULT_PROCESSES

    @property
    def module(self) -> str:
        """The module's name."""
        return self.name.partition(":")[0]

    @property
    def folder(self) -> str:
        """The directory in the container that the server is started in."""
        return "/" if self.source is None else SOURCE_FOLDER

    def command(self, python: str) -> tuple[str, ...]:
        """Return the command line of the server in the container.

        Args:
            python: The Python that runs it there.
        """
        tls: tuple[str, ...] = ()
        if self.certificate is not None:
            tls = ("--cert", f"{TLS_FOLDER}/certificate.pem", "--key", f"{TLS_FOLDER}/key.pem")
        return (
            *("/bin/sh", "-c", _KEEP_STDERR, "quicferry"),
            *(python, "-m", "quicferry.cli", "serve", self.name),
            *("--bind", str(self.bind), "--socket", f"{SOCKET_DIRECTORY}/{SOCKET_NAME}"),
            *tls,
            *self.options,
        )

    def environment(self) -> dict[str, str]:
        """Return the environment of the server in the container."""
        return {
            "PATH": PATH,
            "PYTHONPATH": LIBRARY_FOLDER,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
        }
