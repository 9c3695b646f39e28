"""A virtual machine with Debian's own kernel, for what the kernel of this machine lacks.

async with VirtualMachine({"site": Path("site")}) as machine:
    done = await machine.run(["criu", "check", "--feature", "mem_dirty_track"])
    text = await machine.read("/mnt/site/index.html")
"""

from __future__ import annotations

from quicferry_lab.vm.image import Image, find, make
from quicferry_lab.vm.laboratory import TREE, laboratory
from quicferry_lab.vm.machine import VirtualMachine

__all__ = ["TREE", "Image", "VirtualMachine", "find", "laboratory", "make"]
