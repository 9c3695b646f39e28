"""Moving a running server, with its connections, to another process or host."""

from .agent import Agent
from .container import ContainerPlan, ContainerRelocation, find_server
from .container_agent import ContainerAgent
from .engines import Engine, Runc, SourceContainer, Technique
from .errors import ChannelError, EngineError, HandoverError, IdentityError
from .events import Adopted, AgentEvent, Discarded, Offered, Released
from .handover import Handover, HandoverPlan, Running
from .identity import Identity, make_identities
from .images import Compression
from .management import HandoverCommands
from .report import Outcome, RelocationReport, Step, StepBegun, StepEnded, StepWaits, Transferred

__all__ = [
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
    "find_server",
    "make_identities",
]
