"""The laboratory in a virtual machine: its hosts, quicferry, and the tests of this source tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quicferry_lab.containers.bundle import prepare_bundle
from quicferry_lab.containers.deployment import deploy
from quicferry_lab.containers.site import POOL
from quicferry_lab.ground import DESTINATION, SOURCE
from quicferry_lab.hosts import rootfs
from quicferry_lab.patience import VARIABLE
from quicferry_lab.vm.image import PLACE, TOOLS
from quicferry_lab.vm.machine import VirtualMachine

TREE = f"{PLACE}/quicferry"
"""Where quicferry's source tree is in the virtual machine."""

PATIENCE = 10
"""How much longer things may take than on a machine that is not emulated."""

_LAB = "lab"
_BYTECODE = "bytecode"
"""Where the laboratory's hosts keep compiled code, in its directory."""
_CONFIGURATION = "pyproject.toml"


@asynccontextmanager
async def laboratory(*, counts: bool = False) -> AsyncIterator[VirtualMachine]:
    """Provide a virtual machine in which the laboratory's hosts can be made.

    Its own system is theirs. The quicferry that runs here can be imported there; if that is in a
    source tree, its tests and its configuration are there as well. The laboratory's application is
    there as a bundle, which could not be made there without a network.

    Args:
        counts: Whether its clock counts what its processor does, as for `VirtualMachine`.

    Raises:
        LabError: If the virtual machine has not been made, or does not start.
        ImageError: If something for it cannot be made.
    """
    packages = rootfs.packages()
    tree = packages[0].parent.parent
    root = rootfs.find()
    bundle = await asyncio.to_thread(prepare_bundle, (SOURCE, DESTINATION), POOL)
    await deploy("podman", bundle)  # its store of images cannot be made there either
    folders = {f"quicferry/src/{package.name}": package for package in packages}
    folders[f"{_LAB}/{bundle.name}"] = bundle
    compiled = rootfs.directory() / _BYTECODE
    compiled.mkdir(exist_ok=True)
    folders[_BYTECODE] = compiled
    has_tree = (tree / _CONFIGURATION).exists()
    if has_tree:
        folders["quicferry/tests"] = tree / "tests"
    async with VirtualMachine(folders, counts=counts) as machine:
        lab_root = f"{PLACE}/{_LAB}/{root.name}"
        await machine.run(["mkdir", lab_root])
        await machine.run(["mount", "--bind", "/", lab_root])
        # To compile it all would take a minute there; what does not fit is compiled again.
        await machine.run(["cp", "-a", f"{PLACE}/{_BYTECODE}", f"{PLACE}/{_LAB}/"])
        if has_tree:
            configuration = (tree / _CONFIGURATION).read_bytes()
            await machine.write(f"{TREE}/{_CONFIGURATION}", configuration)
        machine.environment.update(
            {
                "PYTHONPATH": f"{TREE}/src:{TOOLS}",
                rootfs.DIRECTORY_VARIABLE: f"{PLACE}/{_LAB}",
                rootfs.ROOT_VARIABLE: lab_root,
                VARIABLE: str(PATIENCE),
            }
        )
        yield machine
