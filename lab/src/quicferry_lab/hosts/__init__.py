"""The laboratory's hosts, which are namespaces, and the links between them.

async with Lab() as lab:
    source = await lab.add_host("source")
    client = await lab.add_host("client")
    await lab.connect(client, source, PathSpec(rtt_ms=18, rate_mbit=100))
    server = await source.start(["quicferry", "serve", "app:app"])
    page = await client.run(["quicferry", "fetch", f"https://{source.address}:4433/"])
"""

from __future__ import annotations

from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts.errors import LabError
from quicferry_lab.hosts.host import Host
from quicferry_lab.hosts.laboratory import Lab
from quicferry_lab.hosts.link import Backend, Link
from quicferry_lab.hosts.nat import Nat
from quicferry_lab.hosts.programs import Done

__all__ = ["Backend", "Done", "Host", "Lab", "LabError", "Link", "Nat", "PathSpec"]
