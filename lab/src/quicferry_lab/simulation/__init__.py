"""A simulated network in virtual time, on which real connections live through awkward cases.

`Simulation` is one world: clients and servers that are real sans-IO connections, a network that
loses, delays, reorders and doubles their datagrams, NATs, an observer that sees every packet before
it is encrypted, and one seed for everything. No time passes but the computation's.
"""

from __future__ import annotations

from .certificate import SERVER_NAME, certificate
from .configurations import client_configuration, server_configuration, stock_configuration
from .endpoint import Application, Client, Endpoint, ServerEndpoint, ServerHost
from .errors import InvariantError, SimulationError
from .nat import Nat, NatKind
from .network import Counters, Datagram, Network, Path, Sharing, SimulatedAddress
from .observer import Guard, Observer, SentPacket
from .randomness import seeded
from .simulation import Simulation
from .thesis import ThesisClient, ThesisServer
from .traffic import Answer, Exchange, Incoming, Requests, Responder, body

__all__ = [
    "SERVER_NAME",
    "Answer",
    "Application",
    "Client",
    "Counters",
    "Datagram",
    "Endpoint",
    "Exchange",
    "Guard",
    "Incoming",
    "InvariantError",
    "Nat",
    "NatKind",
    "Network",
    "Observer",
    "Path",
    "Requests",
    "Responder",
    "SentPacket",
    "ServerEndpoint",
    "ServerHost",
    "Sharing",
    "SimulatedAddress",
    "Simulation",
    "SimulationError",
    "ThesisClient",
    "ThesisServer",
    "body",
    "certificate",
    "client_configuration",
    "seeded",
    "server_configuration",
    "stock_configuration",
]
