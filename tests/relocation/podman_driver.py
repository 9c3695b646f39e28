"""Does with the Podman engine what it is told; runs in a host of the laboratory.

Its arguments are the name of an image, the name of a container, and steps. It goes on after a step
that fails, and prints what it has found out, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from quicferry.relocation import EngineError
from quicferry.relocation.container.engines import Container, DestinationContainer, SourceContainer
from quicferry.relocation.container.engines.podman import Podman
from quicferry.relocation.container.images import Compression, ImageSender

IMAGES = Path("/run/moving/images")


class Driver:
    """Takes the steps.

    Args:
        image: What containers are made of.
        name: The container's name.
    """

    def __init__(self, image: str, name: str) -> None:
        self._image = image
        self._engine = Podman(image)
        self._name = name
        self._container: Container | None = None
        self.told: dict[str, Any] = {"errors": {}}

    async def take(self, step: str) -> None:
        """Take a step."""
        match step, self._container:
            case str(), _ if step.startswith("allow="):
                self._engine = Podman(self._image, [Path(step.removeprefix("allow="))])
            case "version", _:
                self.told[step] = await self._engine.version()
            case "source", _:
                self._container = await self._engine.source(self._name)
            case "interrupted", _:
                self._container = await self._engine.interrupted(self._name)
            case "destination", _:
                self._container = await self._engine.destination(self._name)
            case "discard", _:
                await self._engine.discard(self._name)
            case "memory", SourceContainer() as source:
                self.told[step] = await source.memory()
            case "pre-dump", SourceContainer() as source:
                await source.pre_dump(IMAGES)
            case "dump", SourceContainer() as source:
                await self._dump(source)
            case "resume", SourceContainer() as source:
                await source.resume()
            case "restore", DestinationContainer() as destination:
                await destination.restore(IMAGES)
            case "remove", Container() as container:
                await container.remove()
            case _:
                raise EngineError("there is no container for this step")
        if self._container is not None:
            self.told["image"] = self._container.image
            self.told["socket"] = str(self._container.socket)

    async def _dump(self, source: SourceContainer) -> None:
        """Dump it, and read the images while they are written, as a relocation does."""
        carried: dict[str, bytearray] = {}
        early = 0

        async def carry(name: str, data: bytes) -> None:
            carried.setdefault(name, bytearray()).extend(data)

        sender = ImageSender(IMAGES, self._engine.grows, Compression.NONE)
        writing = asyncio.ensure_future(source.dump(IMAGES))
        await sender.follow(writing, carry)
        early = sender.read
        await writing
        await sender.finish(carry)
        self.told["early"] = early
        self.told["same"] = all((IMAGES / name).read_bytes() == carried[name] for name in carried)


async def main(image: str, name: str, *steps: str) -> None:
    driver = Driver(image, name)
    for step in steps:
        try:
            await driver.take(step)
        except EngineError as exc:
            driver.told["errors"][step] = str(exc)
    print(json.dumps(driver.told))


if __name__ == "__main__":
    IMAGES.mkdir(mode=0o700, parents=True, exist_ok=True)
    asyncio.run(main(*sys.argv[1:]))
