"""The container engines whose containers can be moved."""

from quicferry.relocation.errors import EngineError

from .engine import (
    IMAGE_ANNOTATION,
    SOCKET_DIRECTORY,
    SOCKET_NAME,
    Container,
    DestinationContainer,
    Engine,
    LazyDump,
    LazyRestore,
    PageTls,
    SourceContainer,
    Technique,
)
from .podman import Podman
from .runc import Runc

ENGINES: dict[str, type[Engine]] = {kind.name: kind for kind in (Runc, Podman)}
"""All of them, by name."""


def engine_class(name: str) -> type[Engine]:
    """Return the engine of that name.

    Raises:
        EngineError: If there is none.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}, only: {', '.join(ENGINES)}")
    return ENGINES[name]


__all__ = [
    "ENGINES",
    "IMAGE_ANNOTATION",
    "SOCKET_DIRECTORY",
    "SOCKET_NAME",
    "Container",
    "DestinationContainer",
    "Engine",
    "LazyDump",
    "LazyRestore",
    "PageTls",
    "Podman",
    "Runc",
    "SourceContainer",
    "Technique",
    "engine_class",
]
