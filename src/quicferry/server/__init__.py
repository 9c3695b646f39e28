"""Serving: a server that can be moved, its ASGI application, and the interface to manage it."""

from .application import DEFAULT_LIMIT_CONCURRENCY, DEFAULT_STARTUP_TIMEOUT, AsgiApplication
from .arrival import Arrival
from .certificate import check_certificate, host_certificate, load_pem, self_signed
from .departure import Departure, FrozenConnection
from .errors import (
    ApplicationError,
    ClientDisconnected,
    ConfigurationError,
    ManagementError,
    RelocationError,
    RelocationErrorCode,
)
from .key_file import load_key
from .management import (
    ManagementServer,
    default_management_path,
    is_listened_at,
    management_directory,
)
from .management_client import ManagementClient
from .planning import Unready
from .reports import (
    Completion,
    PhaseChanged,
    Preparation,
    Relocation,
    RelocationEvent,
    ServerEvent,
)
from .server import Server, serve
from .suspension import Farewell, Suspension
from .synchronisation import Phase, Progress

__all__ = [
    "DEFAULT_LIMIT_CONCURRENCY",
    "DEFAULT_STARTUP_TIMEOUT",
    "ApplicationError",
    "Arrival",
    "AsgiApplication",
    "ClientDisconnected",
    "Completion",
    "ConfigurationError",
    "Departure",
    "Farewell",
    "FrozenConnection",
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
    "RelocationEvent",
    "Server",
    "ServerEvent",
    "Suspension",
    "Unready",
    "check_certificate",
    "default_management_path",
    "host_certificate",
    "is_listened_at",
    "load_key",
    "load_pem",
    "management_directory",
    "self_signed",
    "serve",
]
