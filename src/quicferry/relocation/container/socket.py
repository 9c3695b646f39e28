"""The management socket of a server in a container, as its host uses it.

What is in the directory of the socket is the container's: its server, or whoever has broken into
that, may put anything there. Root must not be led elsewhere by it, to the socket of another server
for example. So the socket has to be one, no link to one, and of the user that the directory belongs
to, which the container cannot change. What was looked at is what is connected to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from quicferry.server import ManagementClient, ManagementError
from quicferry.server.management_client import UNREACHABLE

FOREIGN_SOCKET = "FOREIGN_SOCKET"


@asynccontextmanager
async def manage(path: Path) -> AsyncIterator[ManagementClient]:
    """Connect to the server whose management socket is at `path`, within a context.

    Raises:
        ManagementError: If nobody listens there, or it is not the socket of the container's user.
    """
    try:
        owner = path.parent.stat().st_uid
        file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise ManagementError(
            UNREACHABLE, f"no server listens at {path}: {exc.strerror}; look whether it runs"
        ) from None
    try:
        found = os.fstat(file)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != owner:
            raise ManagementError(
                FOREIGN_SOCKET,
                f"{path} is no socket of user {owner}, who owns the directory; look who has put "
                "it there, and give the directory to the user of the container's server",
            )
        try:
            # The same file, whatever is at its path by now (proc(5)).
            async with ManagementClient.connect(f"/proc/self/fd/{file}") as management:
                yield management
        except ManagementError as exc:
            if exc.code != UNREACHABLE or "/proc/self/fd/" not in str(exc):
                raise
            raise ManagementError(
                UNREACHABLE, f"no server listens at {path} any more; look whether it runs"
            ) from None
    finally:
        os.close(file)
