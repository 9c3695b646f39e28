"""Serving: a server that can be moved, its ASGI application, and the interface to manage it."""

from .certificate import load_pem, self_signed
from .errors import (
    ApplicationError,
    ClientDisconnected,
    ConfigurationError,
    ManagementError,
    RelocationError,
    RelocationErrorCode,
)
from .management import ManagementServer, default_management_path, management_directory
from .management_client import ManagementClient
from .relocator import Unready
from .reports import Completion, PhaseChanged, Preparation, Relocation, ServerEvent
from .server import Server, serve
from .synchronisation import Phase, Progress

__all__ = [
    "ApplicationError",
    "ClientDisconnected",
    "Completion",
    "ConfigurationError",
    "ManagementClient",
    "ManagementError",
    "ManagementServer",
    "Phase",
    "PhaseChanged",
    "Preparation",
    "Progress",
    "Relocation",
    "RelocationError",
    "RelocationErrorCode",
    "Server",
    "ServerEvent",
    "Unready",
    "default_management_path",
    "load_pem",
    "management_directory",
    "self_signed",
    "serve",
]
