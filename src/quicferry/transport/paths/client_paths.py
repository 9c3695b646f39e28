"""A client's network paths: one to each address where its server is, was or may be.

Each is a `QuicNetworkPath` in aioquic's list, the one in use first:

- *home*, where the server is as far as is proven;
- *candidates*, where it may be: announced, in a pool, or the source of a packet;
- former homes, from which late packets still come.

A path that is not in use keeps the connection ID that was used on it, so that none is used with
two addresses (RFC 9000 9.5), as long as the server gives enough of them. Congestion and RTT state
of home are put aside while another path is in use, and restored on the return.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from aioquic.quic.connection import QuicConnectionId, QuicNetworkPath

from quicferry.protocol import Address

from ..addresses import NetworkAddress, address_from_network, network_address
from .connection_ids import PeerConnectionIds
from .recovery import PathState

if TYPE_CHECKING:
    from ..connection import Connection

# At one challenge every 20 ms, an answer is recognised for two and a half seconds.
_REMEMBERED_CHALLENGES = 128
_REMEMBERED_HOMES = 4
_REMEMBERED_IDS = 8
MAX_UNNAMED = 4
"""Addresses that the server has not named, and that are asked whether it is there, at a time."""


class ClientPaths:
    """The paths of one client connection.

    Args:
        connection: The connection.
        may_probe: Tells whether the server has named an address as one where it may be.
        connection_ids: The supply of the server's connection IDs.

    Attributes:
        home: The path to where the server is as far as is proven.
        changes_ids: Whether the server was seen to change its connection ID without moving.
        probes: The candidates' addresses, each with the number of probes that it was sent.
    """

    def __init__(
        self,
        connection: Connection,
        may_probe: Callable[[Address], bool],
        connection_ids: PeerConnectionIds,
    ) -> None:
        self.home: QuicNetworkPath = connection._network_paths[0]
        self.home.local_challenges = deque(maxlen=_REMEMBERED_CHALLENGES)
        self.probes: dict[NetworkAddress, int] = {}
        self._connection = connection
        self._may_probe = may_probe
        self._connection_ids = connection_ids
        self._overheard: set[NetworkAddress] = set()
        self._home_state: PathState | None = None
        self._former_homes: deque[QuicNetworkPath] = deque()
        self._not_preferred: QuicNetworkPath | None = None
        self._spent: deque[QuicConnectionId] = deque()
        self.changes_ids = False
        self._is_shared = False
        self._home_ids: deque[bytes] = deque([connection.host_cid], maxlen=_REMEMBERED_IDS)

    @property
    def in_use(self) -> QuicNetworkPath:
        """The path that everything is sent on."""
        return self._connection._network_paths[0]

    def challenged_by(self, data: bytes) -> QuicNetworkPath | None:
        """Return home or the candidate that was challenged with `data`, if any."""
        for path in self._connection._network_paths:
            if data in path.local_challenges:
                return path if path is self.home or path.addr in self.probes else None
        return None

    def challenges_of(self, source: NetworkAddress) -> tuple[bytes, ...]:
        """Return the challenges of an address that wait for an answer."""
        path = self._find(source)
        return tuple(path.local_challenges) if path is not None else ()

    def is_copied(self, source: NetworkAddress, connection_id: bytes) -> bool:
        """Return whether a packet may have been sent from home, and copied from another address.

        A server that has moved uses a connection ID that it did not use at home (RFC 9000 9.5), or
        should: there are some that keep it, and change it when they answer a challenge. Once that
        was seen, theirs tell nothing of where they are.
        """
        if not connection_id:
            return False
        if connection_id not in self._home_ids and not self.changes_ids:
            return False
        path = self._find(source)
        foreign = path is not None and self._is_foreign(path)
        # Between its original and its preferred address that is not for us to judge.
        return source != self.home.addr and not foreign

    def is_reachable(self, source: NetworkAddress, now: float) -> bool:
        """Return whether there is a connection ID to send something there."""
        path = self._find(source)
        if path is not None and self._is_foreign(path):
            return False
        return bool(
            (path is not None and (path is self.in_use or path.peer_cid is not None))
            or self._connection._peer_cid_available
            or not self._connection._peer_cid.cid
            or self._spent
            or self._spare_owners()
            or (self._are_all_in_use(now) and any(p.peer_cid for p in self._candidates()))
            or self.may_share(now)
        )

    def to(
        self, address: Address, now: float, asked: Collection[QuicNetworkPath] = ()
    ) -> QuicNetworkPath | None:
        """Return the path to an address, a new one if need be; None if no connection ID is left.

        Args:
            address: Where it leads.
            now: The current time in seconds.
            asked: Paths that need their connection IDs now.
        """
        connection = self._connection
        target = network_address(address, self.in_use.addr)
        path = self._find(target) or QuicNetworkPath(target)
        if path is not self.in_use and path.peer_cid is None:
            path.peer_cid = self._take_connection_id() or self._inherit_connection_id(asked, now)
            if path.peer_cid is None and not self.may_share(now):
                return None
        if path is not self.home and target not in self.probes:
            self.probes[target] = 0
            # Ours to challenge, when and as we like
            path.local_challenge_sent = True
            path.local_challenges = deque(maxlen=_REMEMBERED_CHALLENGES)
        if path not in connection._network_paths:
            connection._network_paths.append(path)
        if path in self._former_homes:
            self._former_homes.remove(path)
        return path

    def known(self, address: Address) -> QuicNetworkPath | None:
        """Return the path to an address, if there is one."""
        return self._find(network_address(address, self.in_use.addr))

    def answered_at_home(self, connection_id: bytes) -> None:
        """Take note of an answer to a challenge, after the one that has made this home."""
        self.changes_ids |= bool(self._home_ids) and connection_id not in self._home_ids

    def overhear(self, address: Address, size: int, now: float) -> QuicNetworkPath | None:
        """Return the path to ask where a packet comes from that does not tell its sender.

        Args:
            address: Its source.
            size: The size of its datagram in bytes.
            now: The current time in seconds.

        Returns:
            The path; None if no connection ID is left for it.
        """
        source = network_address(address, self.in_use.addr)
        unnamed = self._expendable()
        if source not in self.probes and not self._may_probe(address):
            unused = self._connection._peer_cid_available or not self._connection._peer_cid.cid
            if not unused and not self._connection_ids.have_run_out(now):
                return None  # those that were used are being replaced
            for oldest in unnamed[: max(0, len(unnamed) + 1 - MAX_UNNAMED)]:
                self._forget(oldest)
        path = self.to(address, now)
        if path is not None:
            path.bytes_received += size  # of the limit against amplification (RFC 9000 8)
            self._overheard.add(path.addr)
        return path

    def is_overheard(self, path: QuicNetworkPath) -> bool:
        """Return whether a path was asked because of what was overheard from there."""
        return path.addr in self._overheard

    def heard_home(self, connection_id: bytes) -> None:
        """Take note of what the server uses at home.

        The source may be forged, and the server be somewhere else already. Then it has to prove
        that, as it does if its packets are overheard.
        """
        if connection_id not in self._home_ids:
            if self._home_ids:
                self.changes_ids = True
            self._home_ids.append(connection_id)

    def home_answered(self) -> None:
        """Take note that home has answered what it was asked because of what was overheard.

        Answers from addresses that nobody has named count no more: a packet that was copied and
        sent from there (RFC 9000 9.3.2), by somebody who passes on the challenge too, must not win
        against a server that has not moved.
        """
        for path in self._expendable():
            if path.addr in self._overheard and path is not self.in_use:
                path.local_challenges.clear()

    def use(self, path: QuicNetworkPath, now: float) -> None:
        """Send everything on a path from now on."""
        connection = self._connection
        left = self.in_use
        if path is left:
            return
        if path.peer_cid is None:
            # The server has retired it (RFC 9000 19.15). Where it has left us no other, it has
            # itself to blame that the one in use is seen at two addresses.
            path.peer_cid = self._take_connection_id()
        if path.peer_cid is None:
            self._is_shared = True
        else:
            left.peer_cid, connection._peer_cid = connection._peer_cid, path.peer_cid
            path.peer_cid = None
            if self._is_shared:
                self._is_shared = False
                connection._retire_peer_cid(left.peer_cid)
                left.peer_cid = None
        left.validation_deadline = None  # it may be in use again, to look for the server there
        connection._spin_bit = False  # RFC 9000 17.4
        connection._network_paths.remove(path)
        connection._network_paths.insert(0, path)
        if path is self.home:
            assert self._home_state is not None, "home was left"
            connection._loss.return_to_path(self._home_state, now=now)
            self._home_state = None
        else:
            state = connection._loss.leave_path()
            if left is self.home:
                self._home_state = state

    def return_home(self, now: float) -> None:
        """Use home again; candidates that were only seen are forgotten."""
        self.use(self.home, now)
        for path in self._candidates():
            path.is_validated = False
        self.forget_candidates()

    def forget_candidates(self) -> None:
        """Forget the candidates that the server has not named, or names no longer."""
        for path in self._expendable():
            self._forget(path)

    def settle(self, connection_id: bytes, now: float) -> None:
        """Make the path in use home, for good.

        Args:
            connection_id: What the server used when it answered the challenge there.
            now: The current time in seconds.
        """
        if self._home_state is not None:
            # What was under way to the old address is not answered any more.
            self._connection._loss.give_up(self._home_state, now=now)
        former = self.home
        self._make_home(self.in_use)
        self.home.is_validated = True
        self._home_ids.append(connection_id)
        self.forget_candidates()
        self.probes = dict.fromkeys(self.probes, 0)
        self._overheard.clear()
        self._spend(former)
        self.retire_spent()

    def drop_stray(self, source: NetworkAddress) -> None:
        """Drop a path that was forgotten while a packet from there was received.

        aioquic adds it again, and would reserve a connection ID for it to answer a challenge. Then
        it would be in the way when the server comes from there.
        """
        path = self._find(source)
        if path is None or path in (self.home, self.in_use, self._not_preferred):
            return
        is_ours = path.addr in self.probes or path in self._former_homes
        if not is_ours and path.peer_cid is None:
            self._connection._network_paths.remove(path)

    def follow_preferred_address(self) -> Address | None:
        """Take note where aioquic itself has moved to the server's preferred address."""
        path = self.in_use
        if path is self.home or path.addr in self.probes:
            return None
        self._not_preferred = self.home
        self._make_home(path)
        return address_of(path)

    def change_connection_ids(self) -> None:
        """Replace the connection IDs of paths not in use: the client's own address has changed."""
        connection = self._connection
        self._home_ids.clear()  # the server replaces its own
        for path in connection._network_paths[1:]:
            if path.peer_cid is None or self._is_foreign(path) or not path.peer_cid.cid:
                continue
            available = connection._peer_cid_available
            if available or path is not self.home:
                connection._retire_peer_cid(path.peer_cid)
                path.peer_cid = available.pop(0) if available else None

    def retire_spent(self) -> None:
        """Retire the connection IDs of paths that are forgotten; the server will send new ones.

        So is the one in use, if another path had to use it as well, and there are others now.
        """
        connection = self._connection
        if self._is_shared and connection._peer_cid_available:
            self._is_shared = False
            connection._retire_peer_cid(connection._peer_cid)
            connection._consume_peer_cid()
        while self._spent:
            cid = self._spent.popleft()
            if cid is not self._connection._peer_cid:
                self._connection._retire_peer_cid(cid)

    def _candidates(self) -> list[QuicNetworkPath]:
        return [
            path
            for path in self._connection._network_paths
            if path is not self.home and path.addr in self.probes
        ]

    def _expendable(self) -> list[QuicNetworkPath]:
        """Return candidates that the server has not named, and that are not in use."""
        return [
            path
            for path in self._candidates()
            if path is not self.in_use and not self._may_probe(address_of(path))
        ]

    def _spare_owners(self) -> list[QuicNetworkPath]:
        """Return those of them that have a connection ID."""
        return [path for path in self._expendable() if path.peer_cid is not None]

    def _find(self, source: NetworkAddress) -> QuicNetworkPath | None:
        return next((p for p in self._connection._network_paths if p.addr == source), None)

    def _is_foreign(self, path: QuicNetworkPath) -> bool:
        """Return whether a path is aioquic's business.

        That is one to the server's preferred address, while it is validated, and the one from its
        original address, from which packets may still come (RFC 9000 9.6). A former home has a
        connection ID, too, where aioquic has answered a challenge from there: it is none of these.
        """
        if path is self.home or path.addr in self.probes:
            return False
        if path is self._not_preferred:
            return True
        return path.peer_cid is not None and path not in self._former_homes

    def _make_home(self, path: QuicNetworkPath) -> None:
        former, self.home = self.home, path
        self._home_state = None
        self._home_ids.clear()
        self._connection.forget_reset_tokens()
        self.probes.pop(path.addr, None)
        # Late packets still come from there, but it starts afresh should the server return.
        former.is_validated = False
        former.bytes_received = former.bytes_sent = 0
        former.local_challenge_sent = True
        former.local_challenges.clear()  # nor does what was asked before it became home count
        self._former_homes.append(former)
        if len(self._former_homes) > _REMEMBERED_HOMES:
            self._forget(self._former_homes[0])

    def _forget(self, path: QuicNetworkPath) -> None:
        self._spend(path)
        self._connection._network_paths.remove(path)
        self.probes.pop(path.addr, None)
        self._overheard.discard(path.addr)
        if path in self._former_homes:
            self._former_homes.remove(path)

    def _spend(self, path: QuicNetworkPath) -> None:
        cid = path.peer_cid
        if cid is not None and cid.cid and cid not in self._spent:
            self._spent.append(cid)
        path.peer_cid = None

    def _take_connection_id(self) -> QuicConnectionId | None:
        """Return a connection ID for one more address, or None.

        One that was used with an address that nobody had announced, and where nobody answered, is
        taken before the connection is lost for lack of another: an attacker who copies packets
        (RFC 9000 9.3.2) could use them all up at the moment when the server moves, and nothing
        that is retired then comes back.
        """
        connection = self._connection
        if not connection._peer_cid.cid:
            return connection._peer_cid
        if connection._peer_cid_available:
            return connection._peer_cid_available.pop(0)
        if not self._spent:
            for path in self._spare_owners()[:1]:
                self._forget(path)
        return self._spent.popleft() if self._spent else None

    def _are_all_in_use(self, now: float) -> bool:
        """Return whether there is no unused connection ID to wait for."""
        connection = self._connection
        held = {path.peer_cid.cid for path in connection._network_paths if path.peer_cid}
        held.add(connection._peer_cid.cid)
        limit: int = connection._local_active_connection_id_limit
        return len(held) >= limit or self._connection_ids.have_run_out(now)

    def _inherit_connection_id(
        self, asked: Collection[QuicNetworkPath], now: float
    ) -> QuicConnectionId | None:
        """Return a connection ID that another path has used, or None.

        A pool may be larger than the number of connection IDs, and a server that has moved replaces
        none before it is found. RFC 9000 9.5 is for what is available.
        """
        if self._are_all_in_use(now):
            for path in self._candidates():
                if path.peer_cid is not None and path not in asked:
                    cid, path.peer_cid = path.peer_cid, None
                    # Its turn comes again after the others.
                    self._connection._network_paths.remove(path)
                    self._connection._network_paths.append(path)
                    return cid
        return None

    def may_share(self, now: float) -> bool:
        """Return whether the connection ID in use has to do for other paths as well.

        Paths that share it have none of their own.
        """
        has_others = any(path.peer_cid is not None for path in self._candidates())
        return not has_others and self._connection_ids.have_run_out(now)


def address_of(path: QuicNetworkPath) -> Address:
    """Return where a path leads."""
    address = address_from_network(path.addr)
    assert address is not None, "paths are only made of addresses that could be read"
    return address
