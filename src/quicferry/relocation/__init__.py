"""Moving a running server, with its connections, to another process or host."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent
    from .container import ContainerPlan, ContainerRelocation, find_server
    from .container_agent import ContainerAgent
    from .destinations import Destinations, Place
    from .engines import ENGINES, Engine, Podman, Runc, SourceContainer, Technique, engine_class
    from .errors import ChannelError, EngineError, HandoverError, IdentityError
    from .events import Adopted, AgentEvent, Discarded, Offered, Released
    from .handover import Handover, HandoverPlan, Running
    from .identity import Identity, make_identities
    from .images import Compression
    from .management import HandoverCommands
    from .report import (
        DestinationStarts,
        Outcome,
        RelocationReport,
        Step,
        StepBegun,
        StepEnded,
        StepWaits,
        Transferred,
    )

__all__ = [
    "ENGINES",
    "Adopted",
    "Agent",
    "AgentEvent",
    "ChannelError",
    "Compression",
    "ContainerAgent",
    "ContainerPlan",
    "ContainerRelocation",
    "DestinationStarts",
    "Destinations",
    "Discarded",
    "Engine",
    "EngineError",
    "Handover",
    "HandoverCommands",
    "HandoverError",
    "HandoverPlan",
    "Identity",
    "IdentityError",
    "Offered",
    "Outcome",
    "Place",
    "Podman",
    "Released",
    "RelocationReport",
    "Runc",
    "Running",
    "SourceContainer",
    "Step",
    "StepBegun",
    "StepEnded",
    "StepWaits",
    "Technique",
    "Transferred",
    "engine_class",
    "find_server",
    "make_identities",
]

_MODULES = {
    "agent": {"Agent"},
    "container": {"ContainerPlan", "ContainerRelocation", "find_server"},
    "container_agent": {"ContainerAgent"},
    "destinations": {"Destinations", "Place"},
    "engines": {
        "ENGINES",
        "Engine",
        "Podman",
        "Runc",
        "SourceContainer",
        "Technique",
        "engine_class",
    },
    "errors": {"ChannelError", "EngineError", "HandoverError", "IdentityError"},
    "events": {"Adopted", "AgentEvent", "Discarded", "Offered", "Released"},
    "handover": {"Handover", "HandoverPlan", "Running"},
    "identity": {"Identity", "make_identities"},
    "images": {"Compression"},
    "management": {"HandoverCommands"},
    "report": {
        "DestinationStarts",
        "Outcome",
        "RelocationReport",
        "Step",
        "StepBegun",
        "StepEnded",
        "StepWaits",
        "Transferred",
    },
}
"""What is in them is imported when it is used: a server needs no container engine."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
