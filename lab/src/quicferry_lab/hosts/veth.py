"""A link that the kernel carries: virtual Ethernet, shaped by `tc`."""

from __future__ import annotations

import asyncio
import math

from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts import programs
from quicferry_lab.hosts.host import Host
from quicferry_lab.hosts.link import MTU, Backend, Link, attach, interface, refuse
from quicferry_lab.patience import patient

FASTEST_MBIT = 10_000.0
"""The rate of a path without one, where a rate is needed."""
_FRAME = MTU + 14
_TICK = 0.001
"""Seconds of the rate that a burst holds, as the kernel does not wake up for each packet."""
_SHORTEST_QUEUE = 0.01
"""Seconds that a queue holds at least where nothing else is said: about what a switch has."""
_LIMIT = patient(10.0)


class VethLink(Link):
    """A link of virtual Ethernet."""

    def __init__(
        self, near: Host, far: Host, path: PathSpec, back: PathSpec, backend: Backend
    ) -> None:
        super().__init__(near, far, path, back)
        self.backend = backend

    @classmethod
    async def create(
        cls, near: Host, far: Host, path: PathSpec, back: PathSpec, backend: Backend
    ) -> VethLink:
        """Make the link.

        Raises:
            LabError: If that fails.
        """
        link = cls(near, far, path, back, backend)
        ends = (
            *("name", interface(far), "address", _hardware(near), "netns", str(near.pid)),
            *("type", "veth", "peer"),
            *("name", interface(near), "address", _hardware(far), "netns", str(far.pid)),
        )
        (await programs.run((), ("ip", "link", "add", *ends), limit=_LIMIT)).check()
        for host, peer in ((near, far), (far, near)):
            await attach(host, peer)
            # Nobody has to ask for it: what would be asked when is a matter of chance.
            neighbour = ("lladdr", _hardware(peer), "dev", interface(peer), "nud", "permanent")
            await host.run(["ip", "neigh", "replace", str(peer.address), *neighbour], limit=_LIMIT)
        await link._apply(path, back)
        return link

    async def cut(self) -> None:
        """Lose every packet from now on, in both directions, without telling anyone."""
        # At the receiver: a sender whose packet is dropped at home would be told.
        await self._filter(
            "table inet cut-{peer} {{ chain cut {{ "
            "type filter hook prerouting priority -400; iifname {device} drop; }}; }}"
        )

    async def restore(self) -> None:
        """Undo a cut."""
        await self._filter("")

    async def _filter(self, table: str) -> None:
        """Replace the table that cuts the link, at both ends at once."""
        ends = ((self.near, self.far), (self.far, self.near))
        rules = "table inet cut-{peer}\ndelete table inet cut-{peer}\n" + table + "\n"
        await asyncio.gather(
            *(
                host.run(
                    ["nft", "-f", "-"],
                    stdin=rules.format(peer=peer.name, device=interface(peer)).encode(),
                    limit=_LIMIT,
                )
                for host, peer in ends
            )
        )

    async def _apply(self, path: PathSpec, back: PathSpec) -> None:
        for host, peer, spec in ((self.near, self.far, path), (self.far, self.near, back)):
            device = interface(peer)
            await host.attempt(["tc", "qdisc", "del", "dev", device, "root"], limit=_LIMIT)
            for discipline in disciplines(spec, self.backend):
                await host.run(
                    ["tc", "qdisc", "add", "dev", device, *discipline.split()], limit=_LIMIT
                )


async def has_netem(host: Host) -> bool:
    """Tell whether the kernel has the emulator, by asking it for one on a host's loopback."""
    emulator = ("dev", "lo", "root", "netem", "delay", "0ms")
    if (await host.attempt(["tc", "qdisc", "add", *emulator], limit=_LIMIT)).returncode:
        return False
    await host.run(["tc", "qdisc", "del", "dev", "lo", "root"], limit=_LIMIT)
    return True


def disciplines(path: PathSpec, backend: Backend) -> list[str]:
    """Return the queueing disciplines of one direction, as arguments of `tc qdisc add dev X`.

    Before the emulator stands a bucket that holds no more than two packets: it takes what an
    application has sent at once apart, so that each packet is lost by itself.

    Raises:
        LabError: If the backend cannot do that.
    """
    if path.is_transparent:
        return []
    if backend is Backend.VETH:
        if path.rtt_ms or path.loss_percent or path.jitter_ms:
            raise refuse(path, backend.value)
        rate = path.rate_mbit or FASTEST_MBIT
        return [_bucket(path, max(2 * _FRAME, int(rate * 1e6 / 8 * _TICK)))]
    jitter = path.jitter_ms / 2
    delay = path.rtt_ms / 2 + jitter
    rate = path.rate_mbit or FASTEST_MBIT
    # The bucket hands a packet to the emulator at once: so its queue is the emulator's, which
    # counts packets, and those that are delayed with them.
    seconds = delay / 1000 + jitter / 1000 + _queue(path)
    packets = math.ceil(seconds * rate * 1e6 / 8 / _FRAME) + 1
    return [
        _bucket(path, 2 * _FRAME),
        f"parent 1: handle 2: netem limit {packets} delay {delay:g}ms {jitter:g}ms "
        f"loss random {path.loss_percent:g}% seed {path.seed + 1}",
    ]


def _hardware(host: Host) -> str:
    """Return the hardware address of a host's interfaces: local, and made of its address."""
    return "02:00:" + host.address.packed.hex(":")


def _bucket(path: PathSpec, burst: int) -> str:
    rate = path.rate_mbit or FASTEST_MBIT
    return f"root handle 1: tbf rate {rate:g}mbit burst {burst} latency {_queue(path) * 1000:g}ms"


def _queue(path: PathSpec) -> float:
    if path.queue_ms is not None:
        return path.queue_seconds
    return max(path.queue_seconds, _SHORTEST_QUEUE)
