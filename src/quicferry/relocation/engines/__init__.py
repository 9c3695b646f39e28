"""The container engines whose containers can be moved."""

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
from .runc import Runc

__all__ = [
    "IMAGE_ANNOTATION",
    "SOCKET_DIRECTORY",
    "SOCKET_NAME",
    "Container",
    "DestinationContainer",
    "Engine",
    "LazyDump",
    "LazyRestore",
    "PageTls",
    "Runc",
    "SourceContainer",
    "Technique",
]
