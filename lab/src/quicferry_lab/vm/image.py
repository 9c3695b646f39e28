"""What the virtual machine boots: the laboratory's system, with Debian's own kernel in it.

It is made once and kept beside the laboratory's system, in a directory whose name is a hash of how
it was made: a file system, the kernel, and the initial file system that finds the disk.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quicferry.relocation.container.image.bundle import scratch
from quicferry.relocation.container.image.programs import run
from quicferry.relocation.container.image.root import find_python
from quicferry_lab.hosts import LabError, rootfs
from quicferry_lab.vm.disk import write_disk

EMULATOR = "qemu-system-x86_64"
TOOLS = "/opt/quicferry/tools"
"""Where pytest and what it needs lie in the virtual machine."""
PLACE = "/mnt"
"""Where it can be written to, and where directories of this machine appear; it is in memory."""

_PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools")
_TOOLS = ("pytest>=8.2", "pytest-asyncio>=0.24", "pytest-timeout>=2.3", "hypothesis>=6.100")
_INIT = "/usr/lib/quicferry/init"
_AGENT = "/usr/lib/quicferry/agent.py"
_AGENT_HERE = Path(__file__).with_name("agent.py")
_BOOT_MODULES = ("virtio_pci", "virtio_blk")
_MODULES = "overlay veth tun sch_netem nf_tables unix_diag inet_diag tcp_diag udp_diag netlink_diag"
_INIT_SCRIPT = f"""#!/bin/sh
# The first process: the kernel has mounted the root, for reading only, and nothing else.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mountpoint -q /dev/pts || mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for place in /dev/shm /run /tmp /var/tmp /root {PLACE}; do
    mount -t tmpfs tmpfs "$place"
done
chmod 1777 /dev/shm /tmp /var/tmp
ln -sfn /proc/self/fd /dev/fd
ip link set lo up
hostname vm
modprobe -a {_MODULES}
# The kernel passes words of its command line on as variables.
env -i PATH="$PATH" HOME="$HOME" LANG="$LANG" python3 -I {_AGENT}
# Nothing has to be saved.
echo o > /proc/sysrq-trigger
sleep 60
"""
_LIMIT = 600.0
_REMEDY = "check that apt and pip of this machine reach their sources"

_NEEDED = {
    EMULATOR: "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
}
"""Programs of this machine, and the Debian packages that have them."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """What a virtual machine boots.

    Attributes:
        folder: The directory with all of it.
    """

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system, ext4."""
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What the kernel finds the root file system with."""
        return self.folder / "initrd.img"

    @property
    def arguments(self) -> str:
        """The kernel's command line."""
        return f"root=/dev/vda ro console=ttyS0 quiet panic=-1 init={_INIT}"


def find() -> Image:
    """Return the image.

    Raises:
        LabError: If it has not been made.
    """
    image = Image(_folder())
    if not image.folder.is_dir() or shutil.which(EMULATOR) is None:
        raise LabError("the virtual machine has not been made; make it: quicferry lab vm build")
    return image


def make(say: Say = print) -> Image:
    """Make the image if it is not there, and what it is made of, and return it.

    It takes about a minute and 900 MB beside the laboratory's system, and needs root, and the
    network that apt and pip are configured for.

    Args:
        say: Is told in a line what is being done.

    Raises:
        LabError: If something is missing on this machine.
        ImageError: If a step fails.
    """
    if platform.machine() != "x86_64":
        raise LabError(f"the virtual machine is for x86_64, and this is {platform.machine()}")
    _install_needed(say)
    root = rootfs.make(say)
    image = Image(_folder())
    if image.folder.is_dir():
        return image
    say(f"making the virtual machine in {image.folder} (once; about a minute)")
    with scratch(image.folder.parent, image.folder.name) as unfinished:
        with scratch(image.folder.parent, "tree") as tree:
            run(
                *("cp", "--archive", "--reflink=auto", f"{root}/.", tree),
                limit=_LIMIT,
                remedy="make room",
            )
            _fill(tree, say)
            _take_out(tree, Image(unfinished), say)
        unfinished.chmod(0o755)
        unfinished.rename(image.folder)
    return image


def _folder() -> Path:
    recipe = [path.read_text() for path in (Path(__file__), _AGENT_HERE)]
    recipe.append(rootfs.find().name)
    return rootfs.directory() / f"vm-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"


def _install_needed(say: Say) -> None:
    packages = [package for program, package in _NEEDED.items() if shutil.which(program) is None]
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LabError(f"needed for the virtual machine (Debian's names): {', '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)
    for command in (("apt-get", "update", "-qq"), install):
        run("env", "DEBIAN_FRONTEND=noninteractive", *command, limit=_LIMIT, remedy=_REMEDY)


def _fill(tree: Path, say: Say) -> None:
    """Add a kernel, the first process, the agent and pytest to the laboratory's system."""
    modules = tree / "usr/share/initramfs-tools/modules.d/quicferry"
    modules.parent.mkdir(parents=True)
    modules.write_text("\n".join(_BOOT_MODULES) + "\n")
    only_those = tree / "etc/initramfs-tools/conf.d/quicferry"
    only_those.parent.mkdir(parents=True)
    only_those.write_text("MODULES=list\n")
    say("installing " + " ".join(_PACKAGES))
    with _archive_in_reach(tree):
        for command in (
            ("apt-get", "update", "-qq"),
            ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *_PACKAGES),
            ("apt-get", "clean"),
        ):
            run(
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *(f"--root={tree}", "env", "DEBIAN_FRONTEND=noninteractive", *command),
                limit=_LIMIT,
                remedy=_REMEDY,
            )
    shutil.rmtree(tree / "var/lib/apt/lists")
    python = find_python(tree)
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"),
        *("--disable-pip-version-check", "--target", tree / TOOLS.lstrip("/")),
        *("--only-binary=:all:", "--implementation=cp"),
        *(f"--python-version={'.'.join(map(str, python.version))}",),
        *(f"--platform={name}" for name in python.platforms),
        *_TOOLS,
        limit=_LIMIT,
        remedy=_REMEDY,
    )
    compile_all = ("python3", "-m", "compileall", "-q", "-j", "2", TOOLS)
    run("chroot", tree, *compile_all, limit=_LIMIT, remedy="make room")
    agent = tree / _AGENT.lstrip("/")
    agent.parent.mkdir()
    agent.write_text(_AGENT_HERE.read_text())
    init = tree / _INIT.lstrip("/")
    init.write_text(_INIT_SCRIPT)
    init.chmod(0o755)


@contextmanager
def _archive_in_reach(tree: Path) -> Iterator[None]:
    """Let apt in a tree reach the archive as this machine does, for a while."""
    resolver = tree / "etc/resolv.conf"
    proxies = tree / "etc/apt/apt.conf.d/90proxies"
    settings = run("apt-config", "dump", limit=_LIMIT, remedy=_REMEDY).splitlines()
    proxies.touch(mode=0o600)
    proxies.write_text("\n".join(line for line in settings if "proxy" in line.lower()) + "\n")
    shutil.copyfile("/etc/resolv.conf", resolver)
    try:
        yield
    finally:
        proxies.unlink()
        resolver.unlink()


def _take_out(tree: Path, image: Image, say: Say) -> None:
    """Write the disk, and put kernel and initial file system beside it."""
    for name, target in (("vmlinuz", image.kernel), ("initrd.img", image.initrd)):
        shutil.copyfile(tree / name, target)  # links to the newest
        (tree / (tree / name).readlink()).unlink()
    say("writing the disk")
    with image.disk.open("xb") as file:
        write_disk(tree, file.fileno())
