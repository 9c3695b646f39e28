"""Moving a running server, with its connections, to another process or host."""

from .agent import Agent
from .container import ContainerPlan, ContainerRelocation, find_server
from .container_agent import ContainerAgent
from .engines import ENGINES, Engine, Podman, Runc, SourceContainer, Technique, engine_class
from .errors import ChannelError, EngineError, HandoverError, IdentityError
from .events import Adopted, AgentEvent, Discarded, Offered, Released
from .handover import Handover, HandoverPlan, Running
from .identity import Identity, make_identities
from .images import Compression
from .management import HandoverCommands
from .report import Outcome, RelocationReport, Step, StepBegun, StepEnded, StepWaits, Transferred

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
