"""Moving a running server, with its connections, to another process or host."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .container.agent import ContainerAgent
    from .container.engines import (
        ENGINES,
        Engine,
        Podman,
        Runc,
        SourceContainer,
        Technique,
        engine_class,
    )
    from .container.images import Compression
    from .container.technique import ContainerPlan, ContainerRelocation, find_server
    from .errors import ChannelError, EngineError, HandoverError, IdentityError
    from .handover.agent import Agent
    from .handover.management import HandoverCommands
    from .handover.technique import Handover, HandoverPlan, Running
    from .link.identity import Identity, make_identities
    from .steps.destinations import Destinations, Place
    from .steps.events import Adopted, AgentEvent, Discarded, Offered, Released
    from .steps.report import (
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
    "handover.agent": {"Agent"},
    "container.technique": {"ContainerPlan", "ContainerRelocation", "find_server"},
    "container.agent": {"ContainerAgent"},
    "steps.destinations": {"Destinations", "Place"},
    "container.engines": {
        "ENGINES",
        "Engine",
        "Podman",
        "Runc",
        "SourceContainer",
        "Technique",
        "engine_class",
    },
    "errors": {"ChannelError", "EngineError", "HandoverError", "IdentityError"},
    "steps.events": {"Adopted", "AgentEvent", "Discarded", "Offered", "Released"},
    "handover.technique": {"Handover", "HandoverPlan", "Running"},
    "link.identity": {"Identity", "make_identities"},
    "container.images": {"Compression"},
    "handover.management": {"HandoverCommands"},
    "steps.report": {
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
