"""CRIU, as far as an engine leaves it to us: its configuration file, its log, its page client."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from quicferry.relocation.errors import EngineError

from .engine import LazyRestore, PageTls
from .program import Program, start

CONFIGURATION_ANNOTATION = "org.criu.config"
"""The annotation of a container with the path of a CRIU configuration file of its own."""

_SOCKET = "lazy-pages.socket"
_START_LIMIT = 10.0
_LOOK_AGAIN = 0.002
_HARMLESS = ("RLIMIT_NOFILE", "Restoring FAILED", "Dumping FAILED")


def tls_options(tls: PageTls) -> list[str]:
    """Return the options, by their long names, that make page transfers prove themselves."""
    return [
        "tls",
        f"tls-cacert {tls.certificate}",
        f"tls-cert {tls.certificate}",
        f"tls-key {tls.key}",
        "tls-no-cn-verify",
    ]


def configure(path: Path, tls: PageTls | None = None, host: str = "") -> None:
    """Write the configuration file of a container.

    Args:
        path: The file.
        tls: What its page server proves itself with, and whom it trusts; None where there is none.
        host: The address that the page server listens at; by itself it would at all of them.
    """
    options = [] if tls is None else [f"address {host}", *tls_options(tls)]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(f"{option}\n" for option in options)


def explain(error: EngineError, log: Path) -> EngineError:
    """Return the error of an engine with what CRIU has to say about it."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return error
    errors = [line for line in lines if "Error" in line]
    telling = [line for line in errors if not any(word in line for word in _HARMLESS)]
    if not telling:
        return error
    said = telling[0].partition("Error")[2].strip()
    what = str(error).partition(" failed:")[0]
    return EngineError(f"{what} failed: CRIU says {said[:300]}{_remedy(said)}")


def _remedy(said: str) -> str:
    remedies = {
        "tee:": "set the sysctls fs.pipe-user-pages-soft=0 and fs.pipe-max-size=33554432",
        "external socket": "close what connects the container with other processes",
        "Connected TCP": "close the server's own TCP connections before it is moved",
        "Can't lookup mount": "let the container use files of its own mounts only, and /dev/null "
        "as stdin, stdout and stderr",
        "No space left": "give the directory in memory more room",
        "Address already in use": "free the port that the server listens at on this host",
        "Can't get rlimit": "without CAP_SYS_RESOURCE only containers whose user is root can be "
        "moved: make the image with --user 0",
        "sockets: Can't get": "install CRIU 4.2 or newer",
        "vdso": "install CRIU 4.2 or newer",
    }
    return next((f"; {what}" for sign, what in remedies.items() if sign in said), "")


class PageClient(LazyRestore):
    """Fetches the memory of a container that is restored without it; made by `begin`."""

    def __init__(self, program: Program, log: Path) -> None:
        self._program = program
        self._log = log

    @classmethod
    async def begin(
        cls, images: Path, work: Path, tls: PageTls, host: str, port: int
    ) -> PageClient:
        """Start it, and wait until a container can be restored.

        Args:
            images: Where the images are.
            work: A directory for its socket and its log.
            tls: What it proves itself with, and whom it trusts.
            host: The address where it fetches the memory.
            port: The TCP port there.

        Raises:
            EngineError: If it does not start.
        """
        log = work / "lazy-pages.log"
        socket = work / _SOCKET
        socket.unlink(missing_ok=True)
        options = [f"--{option}".split(" ") for option in tls_options(tls)]
        program = await start(
            *("criu", "lazy-pages", "--page-server", "--address", host, "--port", str(port)),
            *("--images-dir", str(images), "--work-dir", str(work), "--log-file", str(log)),
            *(word for option in options for word in option),
        )
        client = cls(program, log)
        try:
            async with asyncio.timeout(_START_LIMIT):
                while not socket.exists():
                    if program.process.returncode is not None:
                        await client.wait()
                        raise EngineError("the page client of CRIU ends at once")
                    await asyncio.sleep(_LOOK_AGAIN)  # it has no other way to say that it is ready
        except TimeoutError:
            client.kill()
            raise EngineError(
                f"the page client of CRIU is not ready within {_START_LIMIT:g} s"
            ) from None
        return client

    async def wait(self) -> None:
        """Wait until the container has all of its memory."""
        try:
            await self._program.wait()
        except EngineError as exc:
            raise explain(exc, self._log) from None

    def kill(self) -> None:
        """End it; a container that still needs memory is lost."""
        self._program.kill()
