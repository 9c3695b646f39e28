"""A NAT in front of a host: what many clients are behind.

It is a host in the middle that gives packets from inside its own address (nftables, masquerade). It
keeps the port where that is free, and lets in only what comes from an address and port that
something was sent to: that is, its mapping does not depend on the destination, its filtering
depends on address and port (RFC 4787 4.1 and 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from quicferry_lab.hosts.host import Host
from quicferry_lab.hosts.link import Link, interface
from quicferry_lab.patience import patient

_RULES = """
table inet nat {{
  chain translate {{
    type nat hook postrouting priority srcnat;
    oifname {{ {outside} }} masquerade
  }}
  chain pass {{
    type filter hook forward priority filter; policy drop;
    iifname {inside} accept
    ct state established,related accept
  }}
  chain own {{
    type filter hook input priority filter;
    iifname {{ {outside} }} ct state new drop
  }}
}}
"""
_LIMIT = patient(10.0)


@dataclass(frozen=True)
class Nat:
    """A NAT; made by `Lab.add_nat`.

    Attributes:
        host: The host in the middle; its address is what the outside sees.
        inside: The link to the host behind it.
        outside: The links to the others, by the name of the host.
    """

    host: Host
    inside: Link
    outside: dict[str, Link]

    async def translate(self) -> None:
        """Begin to work.

        Raises:
            LabError: If that fails.
        """
        client = self.inside.near
        rules = _RULES.format(
            inside=interface(client),
            outside=", ".join(interface(link.far) for link in self.outside.values()),
        )
        await self.host.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], limit=_LIMIT)
        await self.host.run(["nft", "-f", "-"], stdin=rules.encode(), limit=_LIMIT)
        routes = (
            f"route replace {link.far.address}/32 via {self.host.address} "
            f"dev {interface(self.host)} src {client.address} onlink"
            for link in self.outside.values()
        )
        await client.run(["ip", "-batch", "-"], stdin="\n".join(routes).encode(), limit=_LIMIT)
