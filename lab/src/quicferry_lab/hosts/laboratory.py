"""The laboratory: hosts, and the links between them, for as long as a context lasts."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType

from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts import rootfs
from quicferry_lab.hosts.cgroups import LabGroup
from quicferry_lab.hosts.errors import LabError
from quicferry_lab.hosts.host import Host, HostSettings
from quicferry_lab.hosts.link import Backend, Link
from quicferry_lab.hosts.nat import Nat
from quicferry_lab.hosts.routed import RoutedLink, RouterProcess
from quicferry_lab.hosts.veth import VethLink, has_netem

_FIRST_ADDRESS = IPv4Address("10.77.0.1")
_MOST_HOSTS = 254
_NAME = re.compile(r"[a-z][a-z0-9-]{0,10}")


class Lab:
    """Hosts and links; an asynchronous context manager.

    Everything in it ends with the context, and also if this process is killed.

    Args:
        root: The root file system of the hosts; None for the laboratory's own.

    Raises:
        LabError: If that has not been made.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or rootfs.find()
        self._names: list[str] = []
        self._hosts: list[Host] = []
        self._links: dict[frozenset[str], Link] = {}
        self._kept = ExitStack()
        self._router: RouterProcess | None = None
        self._router_turn = asyncio.Lock()
        self._kernel_emulates: bool | None = None
        self._groups: LabGroup | None = None

    async def __aenter__(self) -> Lab:
        if os.geteuid() != 0:
            raise LabError("the laboratory's hosts are namespaces with mounts: use sudo")
        self._kept.enter_context(rootfs.in_use())
        self._groups = LabGroup()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._router is not None:
            await self._router.close()
        await asyncio.gather(*(host.close() for host in self._hosts))
        if self._groups is not None:
            self._groups.remove()
        self._kept.close()

    async def add_host(
        self,
        name: str,
        *,
        clock_offset: int | None = None,
        run_size: int = 1 << 30,
        folders: Mapping[str, Path] | None = None,
    ) -> Host:
        """Make a host.

        Args:
            name: Its name: letters, digits and hyphens, at most 11.
            clock_offset: Seconds by which its monotonic and boot-time clocks are ahead of the
                machine's, as those of another machine would be; None for the machine's.
            run_size: How large its /run may become, in bytes.
            folders: Directories of the machine that it sees, read-only, by where it sees them, for
                example ``"srv/site"``.

        Raises:
            LabError: If the name is taken or unfit, or the host cannot be made.
        """
        if self._groups is None:
            raise LabError("the laboratory is not open; use it in `async with`")
        if name in self._names or not _NAME.fullmatch(name):
            raise LabError(f"{name!r} is taken, or not a name of up to 11 letters and digits")
        if len(self._names) == _MOST_HOSTS:
            raise LabError(f"the laboratory has {_MOST_HOSTS} hosts, which is all it can have")
        self._names.append(name)
        host = await Host.create(
            HostSettings(
                name=name,
                address=_FIRST_ADDRESS + self._names.index(name),
                root=self._root,
                cgroup=self._groups.add(name),
                clock_offset=clock_offset,
                run_size=run_size,
                folders=folders or {},
            )
        )
        self._hosts.append(host)
        return host

    async def crash(self, host: Host) -> None:
        """End a host as a power failure would: to its neighbours it is silent from now on.

        Raises:
            LabError: If that fails.
        """
        # Without this the kernel would take the links away, and tell those that send.
        network = os.open(f"/proc/{host.pid}/ns/net", os.O_RDONLY)
        self._kept.callback(os.close, network)
        for link in self._links.values():
            if host in (link.near, link.far):
                await link.cut()
        await host.close()

    async def connect(
        self,
        near: Host,
        far: Host,
        path: PathSpec | None = None,
        back: PathSpec | None = None,
        *,
        backend: Backend | None = None,
    ) -> Link:
        """Put a link between two hosts.

        Args:
            near: One end.
            far: The other end.
            path: What happens to packets from `near` to `far`; None for nothing. Each direction
                delays by half of its round-trip time, and its rate is that of whole IP packets.
            back: What happens to packets from `far` to `near`; None for the same.
            backend: What carries it; None for the simplest that can do that, on this kernel.

        Raises:
            LabError: If there is one already, or it cannot be made.
        """
        pair = frozenset({near.name, far.name})
        if len(pair) < 2 or pair in self._links:
            raise LabError(f"{near.name} and {far.name} are connected already")
        path = path or PathSpec()
        back = back or path
        if backend is None:
            backend = await self._fit_for(path, back, near)
        link: Link
        if backend is Backend.ROUTER:
            link = await RoutedLink.create(near, far, path, back, await self._running_router())
        else:
            link = await VethLink.create(near, far, path, back, backend)
        self._links[pair] = link
        return link

    async def add_nat(self, name: str, client: Host, peers: Mapping[Host, PathSpec]) -> Nat:
        """Put a NAT between a host and others, to which it must not be connected.

        Args:
            name: Of the host that is the NAT.
            client: The host behind it.
            peers: The hosts before it, each with the path from the NAT to it.

        Raises:
            LabError: If that fails.
        """
        host = await self.add_host(name)
        inside = await self.connect(client, host)
        outside = {peer.name: await self.connect(host, peer, path) for peer, path in peers.items()}
        nat = Nat(host, inside, outside)
        await nat.translate()
        return nat

    async def _fit_for(self, path: PathSpec, back: PathSpec, host: Host) -> Backend:
        if not any(way.rtt_ms or way.loss_percent or way.jitter_ms for way in (path, back)):
            return Backend.VETH
        if self._kernel_emulates is None:
            self._kernel_emulates = await has_netem(host)
        return Backend.NETEM if self._kernel_emulates else Backend.ROUTER

    async def _running_router(self) -> RouterProcess:
        async with self._router_turn:
            if self._router is None:
                self._router = await RouterProcess.start()
        return self._router
