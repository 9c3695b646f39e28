"""The two ends of a handover on the simulated network, with real connections.

Both are processes that do one thing at a time: take an input, or carry out one action of their
machine. A fault may strike before each of these steps. `handing_over` has what is between them, and
what can go wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING

from aioquic.quic.events import ConnectionIdIssued
from quicferry_lab.simulation import Responder, ServerEndpoint, ServerHost
from quicferry_lab.simulation.errors import SimulationError
from simulated_pair import AWAY

from quicferry.relocation.errors import HandoverError
from quicferry.relocation.link.messages import Carried, Carry, CarryState, Message, Offer
from quicferry.relocation.ownership import destination, source
from quicferry.relocation.ownership.destination import HOLD, DestinationMachine
from quicferry.relocation.ownership.history import History
from quicferry.relocation.ownership.source import LEASE, SourceMachine
from quicferry.transport import Connection, activate, commit, freeze, resume_after_freeze, thaw

if TYPE_CHECKING:
    from relocation.handing_over import Link, World

STEP = 0.0002
"""Seconds that a step takes."""
SOON = 0.01
"""Seconds until an end of a link notices that it is lost, if something tells it."""
RECONNECT_AFTER = 0.25
PATIENCE = 10.0
"""Seconds that the source waits for the destination before it freezes anything."""


class Process(ABC):
    """Does one thing at a time, unless it is dead or stopped."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self._stopped = False
        self._pumping = False
        self._tasks: deque[Callable[[], None]] = deque()

    @abstractmethod
    def hosts(self) -> list[ServerHost]:
        """The servers that run in it."""

    @abstractmethod
    def receive(self, message: Message, link: Link) -> None:
        """A message has arrived."""

    @abstractmethod
    def lost(self, link: Link) -> None:
        """A link was lost."""

    def post(self, task: Callable[[], None]) -> None:
        """Do something when all else is done."""
        self._tasks.append(task)
        self._pump_soon()

    def do_first(self, tasks: list[Callable[[], None]]) -> None:
        """Do something before anything else."""
        self._tasks.extendleft(reversed(tasks))
        self._pump_soon()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be done."""
        return not self._tasks

    def die(self) -> None:
        """Do nothing any more."""
        self.alive = False
        self._silence()

    def stop(self, duration: float) -> None:
        """Do nothing for a while: not even notice that time goes by."""
        if not self.alive or self._stopped:
            return
        self._stopped = True
        self._silence()
        self.world.network.call_later(duration, self.go_on)

    def _silence(self) -> None:
        for host in self.hosts():
            host.frozen = True
            self.world.network.detach(host.address)

    def go_on(self) -> None:
        """Do no longer nothing."""
        if self._stopped and self.alive:
            self._stopped = False
            self._pump_soon()
            for host in self.hosts():
                host.frozen = False
                self.world.network.attach(host.address, host.receive)
                for endpoint in host.endpoints:
                    endpoint.flush()

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.world.network.call_later(STEP, self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._may_run():
            self.world.before_step()
        if self._may_run():
            self._tasks.popleft()()
            self._pump_soon()

    def _may_run(self) -> bool:
        return self.alive and not self._stopped and bool(self._tasks)


class Source(Process):
    """The source: the server of the pair."""

    def __init__(self, world: World) -> None:
        super().__init__(world, "source")
        self.endpoint = world.it.server
        self.machine = SourceMachine(bytes(16))
        self.link: Link | None = None
        self.deadline: float | None = None
        self.is_silent = False
        """From the freeze on, until it goes on."""
        self.frozen_at = self.silence = 0.0
        self.sent_at = 0.0
        self._calls_off = False
        """Whether it is about to connect again, only to say that it has gone back."""

    def hosts(self) -> list[ServerHost]:
        return [self.world.it.host]

    @property
    def is_idle(self) -> bool:
        return super().is_idle and not self._calls_off

    def begin(self, handover: bytes) -> None:
        """Begin a handover, with a link of its own."""
        if self.link is not None:
            self.link.lose(agent=0.0)
        self.machine = SourceMachine(handover)
        self.deadline = None
        self._calls_off = False
        self.link = self.world.connect()
        lose_patience = partial(self._lose_patience, self.machine)
        self.world.network.call_later(PATIENCE, lambda: self.post(lose_patience))
        self.send(Offer(handover, "0", 1, "test", "192.0.2.1:4433", 1, True, 1, 8))

    def send(self, message: Message) -> None:
        if self.link is not None:
            self.world.send(self.link, self.link.agent, message)

    def receive(self, message: Message, link: Link) -> None:
        machine = self.machine
        self._take(machine, lambda: machine.receive(message))

    def lost(self, link: Link) -> None:
        if link is self.link:
            self.link, machine = None, self.machine
            self._take(machine, lambda: machine.link_lost("the link is lost"))
            if machine.state is source.State.BACK:
                self._calls_off = True
                self._reconnect_soon(machine)

    def abort(self) -> None:
        machine = self.machine
        self.world.aborted_in_time = machine.may_abort
        self._take(machine, lambda: machine.abort("abort"))

    def _lose_patience(self, machine: SourceMachine) -> None:
        if machine.state in (source.State.OFFERED, source.State.ACCEPTED):
            self._take(machine, lambda: machine.abort("no answer"))

    def _take(
        self, machine: SourceMachine, given: Callable[[], list[source.Do | Message]] = list
    ) -> None:
        """Look at the clock, hand an input to the machine, and do what it says."""
        if machine is not self.machine:
            return
        before, actions = machine.state, []
        if self.deadline is not None and self.world.network.now >= self.deadline:
            self.deadline = None
            actions += machine.lease_over()
        try:
            actions += given()
        except HandoverError:
            assert machine.has_ended
        self.do_first([partial(self._do, action, machine) for action in actions])
        if machine.state is not before:
            if machine.state is source.State.ACCEPTED:
                self.post(partial(self._take, machine, machine.freeze))
            elif machine.state is source.State.SWITCHED and self.world.has_orchestrator:
                self.post(partial(self._take, machine, machine.commit))

    def _do(self, action: source.Do | Message, machine: SourceMachine) -> None:
        match action:
            case source.Do.START_LEASE:
                self.deadline = self.world.network.now + LEASE
                look = partial(self._take, machine)
                self.world.network.call_at(self.deadline, lambda: self.post(look))
                for step in (self._carry, self._carry_state, self._carried):
                    self.post(partial(self._if_frozen, machine, step))
            case source.Do.CALL_OFF:
                self._go_on()
            case source.Do.RESUME:
                if self.is_silent:
                    self._end_silence()
                    self.is_silent = False
                    resume_after_freeze(self.endpoint.migrating, now=self.world.network.now)
                self._go_on()
            case source.Do.DEPART | source.Do.DROP:
                self._end_silence()
            case source.Do.RECONNECT:
                self._reconnect_soon(machine)
            case Message():
                self.send(action)

    def _end_silence(self) -> None:
        self.silence = self.world.network.now - self.frozen_at

    def _go_on(self) -> None:
        if self.endpoint.migrating.migration_state in ("preparing", "ready"):
            self.endpoint.migrating.abort_migration(now=self.world.network.now)
        self.endpoint.flush()

    def _if_frozen(self, machine: SourceMachine, step: Callable[[], None]) -> None:
        if machine is self.machine and machine.state is source.State.FROZEN:
            step()

    def _carry(self) -> None:
        handover, connection = self.machine.handover, self.endpoint.migrating
        application = self.endpoint.application
        snapshot = freeze(connection, now=self.world.network.now)
        self.world.exported[handover] = deepcopy(
            {key: value for key, value in vars(application).items() if key != "_endpoint"}
        )
        self.endpoint.flush()
        self.is_silent = True
        self.frozen_at = self.world.frozen_at[handover] = self.world.network.now
        self.send(Carry(handover, connection.stable_id, snapshot, b""))

    def _carry_state(self) -> None:
        self.send(CarryState(self.machine.handover, b""))

    def _carried(self) -> None:
        self.send(Carried(self.machine.handover, 1))

    def _reconnect_soon(self, machine: SourceMachine) -> None:
        reconnect = partial(self._reconnect, machine)
        self.world.network.call_later(RECONNECT_AFTER, lambda: self.post(reconnect))

    def _reconnect(self, machine: SourceMachine) -> None:
        if machine is not self.machine or self.link is not None:
            return
        self._calls_off = False
        self.link = self.world.connect()
        if self.link is not None:
            self._take(machine, machine.link_back)
        elif self.deadline is not None:
            self._take(machine)
            self._reconnect_soon(machine)


class Reception:
    """What an instance of the destination has of one handover."""

    def __init__(self, machine: DestinationMachine, link: Link) -> None:
        self.machine = machine
        self.offer_link = self.link = link
        self.deadline: float | None = None
        self.host: ServerHost | None = None
        self.endpoint: ServerEndpoint | None = None
        self.has_lived = False


class Agent(Process):
    """One instance of the destination."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, f"destination-{number}")
        self.history = History()
        self.receptions: dict[bytes, Reception] = {}

    def hosts(self) -> list[ServerHost]:
        return [it.host for it in self.receptions.values() if it.host is not None]

    def receive(self, message: Message, link: Link) -> None:
        reception = self.receptions.get(message.handover)
        knows = self.history.knows(message.handover)
        if reception is None and isinstance(message, Offer) and not knows:
            self._begin(message, link)
        elif reception is not None:
            if not link.is_lost:
                reception.link = link
            machine = reception.machine
            self._take(reception, lambda: machine.receive(message), link, message)
        else:
            answer = self.history.answer(message)
            if answer is not None:
                self.world.send(link, self.world.source, answer)

    def lost(self, link: Link) -> None:
        for reception in list(self.receptions.values()):
            if reception.offer_link is link:
                self._take(reception, reception.machine.link_lost)

    def fail(self) -> None:
        for reception in list(self.receptions.values()):
            self._take(reception, partial(reception.machine.fail, "no more"))

    def owner(self) -> Reception | None:
        owners = [it for it in self.receptions.values() if it.machine.owns]
        assert len(owners) <= 1
        return owners[0] if owners else None

    def _begin(self, offer: Offer, link: Link) -> None:
        reception = Reception(DestinationMachine(offer, self.history), link)
        self.receptions[offer.handover] = reception
        self.post(partial(self._bind, reception))
        if link.is_lost:
            self.world.network.call_later(SOON, partial(link.tell, self))

    def _bind(self, reception: Reception) -> None:
        if reception.machine.has_ended:
            return
        it = self.world.it
        try:
            reception.host = ServerHost(
                it.network,
                it.simulation.observer,
                AWAY,
                it.server.migrating.configuration,
                Connection,
            )
        except SimulationError:
            self._take(reception, partial(reception.machine.fail, "the address is in use"))
        else:
            self._take(reception, partial(reception.machine.accept, "192.0.2.1:4433"))

    def _take(
        self,
        reception: Reception,
        given: Callable[[], list[destination.Do | Message]] = list,
        link: Link | None = None,
        message: Message | None = None,
    ) -> None:
        actions: list[destination.Do | Message] = []
        if reception.deadline is not None and self.world.network.now >= reception.deadline:
            reception.deadline = None
            actions += reception.machine.lease_over()
        actions += given()
        link = link or reception.link
        self.do_first([partial(self._do, action, reception, link, message) for action in actions])

    def _do(
        self,
        action: destination.Do | Message,
        reception: Reception,
        link: Link,
        message: Message | None,
    ) -> None:
        machine, now = reception.machine, self.world.network.now
        match action:
            case destination.Do.START_LEASE:
                reception.deadline = now + HOLD
                look = partial(self._take, reception)
                self.world.network.call_at(reception.deadline, lambda: self.post(look))
            case destination.Do.TAKE:
                if isinstance(message, Carry):
                    self._thaw(reception, message)
            case destination.Do.IMPORT:
                self.post(partial(self._take, reception, machine.thawed))
            case destination.Do.SWITCH:
                _endpoint(reception).migrating.network_switch(AWAY, now=now)
                self.post(partial(self._take, reception, machine.switched))
            case destination.Do.ACTIVATE:
                reception.has_lived = True
                copy = _endpoint(reception)
                activate(copy.migrating, now=now)
                copy.migrating.send_ping(0)  # so that one that must not live is seen at once
                copy.flush()
            case destination.Do.LIFT:
                commit(_endpoint(reception).migrating)
                _endpoint(reception).flush()
            case destination.Do.DISCARD:
                self._discard(reception)
            case Message():
                self.world.send(link, self.world.source, action)

    def _thaw(self, reception: Reception, carry: Carry) -> None:
        it, host = self.world.it, reception.host
        assert host is not None
        connection = thaw(
            carry.connection,
            configuration=it.server.migrating.configuration,
            now=self.world.network.now,
        )
        name = f"copy-{len(self.world.copies)}"
        endpoint = ServerEndpoint(name, host, it.simulation.observer, connection)
        endpoint.application = Responder(endpoint)
        vars(endpoint.application).update(self.world.exported[carry.handover])
        host.endpoints.append(endpoint)
        for connection_id in connection.own_connection_ids:
            host.route(ConnectionIdIssued(connection_id=connection_id), endpoint)
        reception.endpoint = endpoint
        self.world.copies[name] = (self, reception)

    def _discard(self, reception: Reception) -> None:
        if reception.host is not None:
            self.world.network.detach(reception.host.address)
        del self.receptions[reception.machine.handover]


def _endpoint(reception: Reception) -> ServerEndpoint:
    assert reception.endpoint is not None
    return reception.endpoint
