"""The first process of a host: makes its file system, and stays until the laboratory ends.

Run as a script, by `unshare`, in new namespaces; it imports nothing but the standard library, so it
starts fast. It says its process ID on its standard output when the host is ready. Its standard
input is a pipe from the laboratory's process: when that ends, however it ends, so does this, and
with the first process of a PID namespace the kernel ends all the others, and the mounts.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

LOWER_LIMIT = "50%"
"""How much of the memory the changes to a host's file system may take."""


def main(settings: dict[str, Any]) -> None:
    """Make the host, say so, and wait for the end of standard input."""
    pid = Path("/proc/self").readlink()  # as outside of the new PID namespace: /proc is still old
    _make_root(settings)
    socket.sethostname(settings["name"])
    _configure_network()
    # What loses its parent in the host becomes this process's child: it is not to be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    print(pid, flush=True)
    while os.read(0, 1024):
        pass


def _make_root(settings: dict[str, Any]) -> None:
    area = Path(settings["area"])
    root = area / "root"
    _mount("tmpfs", area, "tmpfs", f"size={LOWER_LIMIT},mode=700")
    for name in ("upper", "work", "root"):
        (area / name).mkdir(mode=0o755)
    layers = f"lowerdir={settings['root']},upperdir={area}/upper,workdir={area}/work"
    _mount("overlay", root, "overlay", layers)
    _mount("proc", root / "proc", "proc", "nosuid,nodev,noexec")
    _mount("sysfs", root / "sys", "sysfs", "nosuid,nodev,noexec")
    if settings["has_cgroup"]:
        _mount("cgroup2", root / "sys/fs/cgroup", "cgroup2", "nosuid,nodev,noexec")
    _mount("tmpfs", root / "run", "tmpfs", f"mode=755,nosuid,nodev,size={settings['run_size']}")
    _mount("tmpfs", root / "tmp", "tmpfs", "mode=1777,nosuid,nodev")
    _run("mount", "--rbind", "/dev", str(root / "dev"))
    _mount("tmpfs", root / "dev/shm", "tmpfs", "mode=1777,nosuid,nodev")
    for source, target, options in settings["binds"]:
        place = root / target
        place.mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", source, str(place))
        _run("mount", "-o", f"remount,bind,{options}", str(place))
    (root / "mnt/outside").mkdir(exist_ok=True)
    os.chdir(root)
    _run("pivot_root", ".", "mnt/outside")
    os.chdir("/")
    _unmount("/mnt/outside")
    os.environ["PATH"] = settings["path"]


def _configure_network() -> None:
    _run("ip", "link", "set", "lo", "up")
    for name, value in {
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        # What IPv6 sends by itself on a new link would be a matter of chance in each run.
        "ipv6/conf/default/disable_ipv6": "1",
        "ipv4/ping_group_range": "0 2147483647",
    }.items():
        path = Path("/proc/sys/net") / name
        if path.exists():
            path.write_text(value)


def _mount(source: str, target: Path, kind: str, options: str) -> None:
    _run("mount", "-t", kind, "-o", options, source, str(target))


def _unmount(target: str) -> None:
    """Detach the old root: `umount` of the new one may not know what is mounted there."""
    libc = ctypes.CDLL(None, use_errno=True)
    detach = 2  # MNT_DETACH
    if libc.umount2(target.encode(), detach):
        raise OSError(ctypes.get_errno(), f"{target} cannot be detached")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
