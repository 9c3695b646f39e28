"""A handover on the simulated network, and everything that can go wrong.

A `World` has a source, the one of a `Pair`, and one instance of a destination after the other.
Faults strike before a step of one of them, or before a message arrives. The channel between them
does whatever a link may do, and more: a message may be lost, late, or come again, also after the
link that it was sent on is gone; but never at another instance than the one it was sent to.

Checked all the time: nobody sends while or after somebody else does. (That no packet number is used
twice with a key is checked by the simulation's observer.)
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from quicferry_lab.simulation import Datagram, InvariantError
from relocation.processes import SOON, Agent, Process, Reception, Source
from simulated_pair import AWAY, HOME, Pair

from quicferry.relocation.link.messages import Message, decode, encode
from quicferry.relocation.ownership.source import LEASE, SourceMachine

DELAY = 0.004
"""Seconds that a message takes."""
LATE = 1.0
"""Seconds that messages take which get through although their link is lost."""
UNNOTICED = 5.0
"""Seconds until an end of a link notices that it is lost, if nothing tells it."""
RESTART_AFTER = 0.25
PAUSE = 2.0
LONG = LEASE + 10
"""Seconds: longer than any lease."""


class Fault(enum.Enum):
    """What can strike before a step."""

    CRASH_SOURCE = enum.auto()
    CRASH_DESTINATION = enum.auto()
    """Its host is gone; nobody answers any more."""
    RESTART_DESTINATION = enum.auto()
    """Another instance answers soon."""
    FAIL_DESTINATION = enum.auto()
    """It gives up by itself."""
    ABORT = enum.auto()
    """The orchestrator wants it back, or is gone and its end says so."""
    ORCHESTRATOR_GONE = enum.auto()
    """It will not say go."""
    LOSE_LINK = enum.auto()
    LOSE_LINK_LATE = enum.auto()
    """What is under way still arrives, later."""
    LOSE_LINK_AT_SOURCE = enum.auto()
    """The destination does not notice."""
    LOSE_LINK_AT_DESTINATION = enum.auto()
    """The source notices late."""
    CUT = enum.auto()
    """There is no other link for longer than the lease."""
    PAUSE_SOURCE = enum.auto()
    PAUSE_DESTINATION = enum.auto()
    STOP_SOURCE = enum.auto()
    """Like a pause, but longer than the lease."""
    STOP_DESTINATION = enum.auto()


@dataclass(frozen=True)
class Plan:
    """What goes wrong.

    Attributes:
        faults: By the number of the step that they strike before.
        fates: Seconds that a message is late, by its number; None: it never arrives.
        echoes: After so many seconds each message comes again.
        later: Faults that strike at a time: so many seconds after the beginning.
    """

    faults: Mapping[int, Fault] = field(default_factory=dict)
    fates: Mapping[int, float | None] = field(default_factory=dict)
    echoes: tuple[float, ...] = ()
    later: tuple[tuple[float, Fault], ...] = ()


class Link:
    """A connection between the source and one instance of the destination."""

    def __init__(self, world: World, agent: Agent) -> None:
        self.agent = agent
        self.is_lost = False
        self.is_late = False
        self._world = world

    def lose(self, *, source: float = SOON, agent: float = SOON) -> None:
        """Break; the two ends notice after so many seconds."""
        if not self.is_lost:
            self.is_lost = True
            for process, delay in ((self._world.source, source), (self.agent, agent)):
                self._world.network.call_later(delay, partial(self.tell, process))

    def tell(self, process: Process) -> None:
        """Let one end notice that this link is lost."""
        process.post(partial(process.lost, self))


class World:
    """Source, destination, and what is between them."""

    def __init__(self, it: Pair, plan: Plan) -> None:
        self.it = it
        self.plan = plan
        self.network = it.network
        self.steps = 0
        self.messages: list[str] = []
        self.handovers: list[SourceMachine] = []
        self.has_orchestrator = True
        self.exported: dict[bytes, dict[str, object]] = {}
        self.frozen_at: dict[bytes, float] = {}
        self.copies: dict[str, tuple[Agent, Reception]] = {}
        self.agents = 0
        self.source = Source(self)
        self.agent = self._start_agent()
        self._cut_until = 0.0
        self.aborted_in_time = False
        it.network.taps.append(self._watch)
        for delay, fault in plan.later:
            self.network.call_later(delay, partial(self._strike_later, fault))

    def begin(self) -> None:
        """Begin a handover."""
        self.source.begin(bytes([len(self.handovers)]) * 16)
        self.handovers.append(self.source.machine)

    def recover(self) -> None:
        """Let everything be well from now on."""
        self.plan = Plan(echoes=self.plan.echoes)
        self.has_orchestrator = True
        self._cut_until = 0.0
        self._restart_agent()
        self.source.go_on()
        self.agent.go_on()

    @property
    def has_restarted(self) -> bool:
        """Whether an instance of the destination has died."""
        return self.agents > 1 or not self.agent.alive

    @property
    def has_lived(self) -> bool:
        """Whether any copy has lived."""
        return any(reception.has_lived for _, reception in self.copies.values())

    def connect(self) -> Link | None:
        """A link from the source to the destination, if there is a way."""
        if self.network.now < self._cut_until or not self.agent.alive:
            return None
        return Link(self, self.agent)

    def send(self, link: Link, receiver: Process, message: Message) -> None:
        """Send a message over a link."""
        number = len(self.messages)
        self.messages.append(type(message).__name__)
        data = encode(message)
        fate = self.plan.fates.get(number, 0.0)
        if link.is_lost:
            return
        if fate is not None:
            first = partial(self._arrive, link, receiver, data)
            self.network.call_later(DELAY + fate, first)
        for echo in self.plan.echoes:
            self.network.call_later(DELAY + echo, partial(self._deliver, link, receiver, data))

    def _arrive(self, link: Link, receiver: Process, data: bytes) -> None:
        self.before_step()
        if not link.is_lost:
            self._deliver(link, receiver, data)
        elif link.is_late:
            self.network.call_later(LATE, partial(self._deliver, link, receiver, data))

    def _deliver(self, link: Link, receiver: Process, data: bytes) -> None:
        message = decode(data)
        receiver.post(partial(receiver.receive, message, link))

    # Faults

    def before_step(self) -> None:
        """Let strike what is planned for this step."""
        fault = self.plan.faults.get(self.steps)
        self.steps += 1
        if fault is not None:
            self.strike(fault)

    def _strike_later(self, fault: Fault) -> None:
        if self.plan.later:
            self.strike(fault)

    def strike(self, fault: Fault) -> None:
        """Let something go wrong now."""
        link = self.source.link
        match fault:
            case Fault.CRASH_SOURCE:
                self.source.die()
                if link is not None:
                    link.lose()
            case Fault.CRASH_DESTINATION:
                self.agent.die()
                if link is not None:
                    link.lose(source=UNNOTICED)
            case Fault.RESTART_DESTINATION:
                self.agent.die()
                if link is not None:
                    link.lose()
                self.network.call_later(RESTART_AFTER, self._restart_agent)
            case Fault.FAIL_DESTINATION:
                self.agent.do_first([self.agent.fail])
            case Fault.ABORT:
                self.source.do_first([self.source.abort])
            case Fault.ORCHESTRATOR_GONE:
                self.has_orchestrator = False
            case Fault.PAUSE_SOURCE:
                self.source.stop(PAUSE)
            case Fault.STOP_SOURCE:
                self.source.stop(LONG)
            case Fault.PAUSE_DESTINATION:
                self.agent.stop(PAUSE)
            case Fault.STOP_DESTINATION:
                self.agent.stop(LONG)
            case Fault.CUT:
                self._cut_until = self.network.now + LONG
        if link is not None:
            match fault:
                case Fault.LOSE_LINK | Fault.CUT:
                    link.lose()
                case Fault.LOSE_LINK_LATE:
                    link.is_late = True
                    link.lose()
                case Fault.LOSE_LINK_AT_SOURCE:
                    link.lose(agent=LONG)
                case Fault.LOSE_LINK_AT_DESTINATION:
                    link.lose(source=UNNOTICED)

    def _start_agent(self) -> Agent:
        self.agents += 1
        return Agent(self, self.agents)

    def _restart_agent(self) -> None:
        if not self.agent.alive:
            self.agent = self._start_agent()

    # What must hold

    @property
    def is_decided(self) -> bool:
        """Whether nobody waits for anybody any more."""
        if self.source.alive and not (self.source.machine.has_ended and self.source.is_idle):
            return False
        return not self.agent.alive or (
            self.agent.is_idle
            and all(
                reception.deadline is None or reception.machine.has_ended
                for reception in self.agent.receptions.values()
            )
        )

    def _watch(self, datagram: Datagram) -> None:
        sender, now = self.it.simulation.observer.sender, self.network.now
        if sender == self.source.endpoint.name:
            assert datagram.source == HOME
            self._demand(self.source.alive, "the source sent, and is dead")
            self._demand(not self.source.is_silent, "the source sent, and is to be silent")
            for agent, reception in self.copies.values():
                alive = agent.alive and reception.has_lived
                self._demand(not alive, "the source sent beside a copy that lives")
            self.source.sent_at = now
        elif sender in self.copies:
            assert datagram.source == AWAY
            agent, reception = self.copies[sender]
            self._demand(agent.alive, "a copy sent, and is dead")
            self._demand(reception.machine.owns, "a copy sent without being the owner")
            alone = self.source.sent_at <= self.frozen_at[reception.machine.handover]
            self._demand(alone, "a copy sent beside a source that went on")

    def _demand(self, condition: bool, otherwise: str) -> None:
        if not condition:
            raise InvariantError(otherwise)
