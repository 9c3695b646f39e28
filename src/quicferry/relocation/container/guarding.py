"""The process that a `guard.Guard` is: ``python -m quicferry.relocation.container.guarding``.

If whoever moves a container is killed before the commitment, the container goes on, as if nothing
had happened. After that only the agent knows whose the server is, so the container stays stopped,
and an operator has to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

from quicferry.protocol import QuicferryError
from quicferry.relocation.container.engines import engine_class
from quicferry.relocation.container.guard import Stage
from quicferry.relocation.container.images import wipe
from quicferry.relocation.container.socket import manage


async def _watch(engine: str, container: str, directory: Path) -> None:
    """Read how far the relocation is, and act if that ends too early."""
    told: dict[str, Any] = {"stage": Stage.OVER.value}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        told = json.loads(line)
    stage = Stage(told["stage"])
    if stage is Stage.OVER:
        return
    try:
        if stage is Stage.COMMITTING:
            print(
                f"the relocation of the container {container} was interrupted when the destination "
                "may have had it already: if the agent there says that it has adopted it, remove "
                "it here; otherwise let it go on here",
                file=sys.stderr,
            )
        else:
            await _bring_back(engine, container, stage, told["pages"])
    finally:
        await wipe(directory)


async def _bring_back(engine: str, name: str, stage: Stage, pages: list[Any] | None) -> None:
    if pages is not None:
        with contextlib.suppress(OSError):  # CRIU ends when its only client goes away
            _, writer = await asyncio.open_connection(*pages)
            writer.close()
    container = await engine_class(engine)().interrupted(name)
    if stage is Stage.SUSPENDED:
        await container.resume()
    async with manage(container.socket) as management:
        for command in ("resume", "abort"):  # which of them depends on how far it really was
            with contextlib.suppress(QuicferryError):
                await management.command(command)
                return


def main() -> int:
    """Run the guard, and return its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    engine, container, directory = sys.argv[1:]
    try:
        asyncio.run(_watch(engine, container, Path(directory)))
    except QuicferryError as exc:
        print(f"the container {container} could not be brought back: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
