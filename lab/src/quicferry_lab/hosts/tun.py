"""Network interfaces whose packets a program carries, in the network namespaces of hosts."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEADER_BYTES = 10
"""Before each packet: `struct virtio_net_hdr`, which says what checksum is still to be computed.

It is handed on as it came, so a checksum is never computed. Without it some kernels would refuse to
send several datagrams at once (UDP_SEGMENT). Packets are segmented by the kernel all the same:
each one is lost, or not, by itself.
"""

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM = 0x01
_IFREQ = "16sH22x"
_CLONE_NEWNET = 0x40000000


def open_tun(name: str, pid: int) -> int:
    """Make an interface in the network namespace of a process.

    Args:
        name: The interface's name.
        pid: The process.

    Returns:
        A descriptor that does not block, to read and write packets with their headers; the
        interface is there until it is closed.

    Raises:
        OSError: If that fails.
    """
    with _inside_network(pid):
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            request = struct.pack(_IFREQ, name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _TUN_F_CSUM)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


@contextmanager
def _inside_network(pid: int) -> Iterator[None]:
    """Move this thread to another network namespace for a while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(Path("/proc", str(pid), "ns/net"), os.O_RDONLY)
        try:
            _enter_network(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter_network(home)
    finally:
        os.close(home)


def _enter_network(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
