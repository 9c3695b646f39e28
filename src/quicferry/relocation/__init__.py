"""Moving a running server, with its connections, to another process or host."""

from .agent import Agent
from .errors import ChannelError, HandoverError, IdentityError
from .events import Adopted, AgentEvent, Discarded, Offered, Released
from .handover import Handover, HandoverPlan, Running
from .identity import Identity, make_identities
from .management import HandoverCommands
from .report import Outcome, RelocationReport, Step, StepBegun, StepEnded, StepWaits

__all__ = [
    "Adopted",
    "Agent",
    "AgentEvent",
    "ChannelError",
    "Discarded",
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
    "Running",
    "Step",
    "StepBegun",
    "StepEnded",
    "StepWaits",
    "make_identities",
]
