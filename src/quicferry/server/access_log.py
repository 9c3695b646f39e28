"""The access log: hypercorn's, with what a client has chosen made fit for it."""

from __future__ import annotations

from collections.abc import Mapping

from hypercorn.logging import AccessLogAtoms, Logger
from hypercorn.typing import ResponseSummary, WWWScope

from quicferry.protocol import printable


class AccessLogger(Logger):
    """Logs paths as the client has sent them, not as applications read or change them.

    A decoded path can hold line ends and escape sequences; so can the fields of a header.
    """

    def atoms(
        self, request: WWWScope, response: ResponseSummary | None, request_time: float
    ) -> Mapping[str, str]:
        """Return what the parts of a line stand for."""
        atoms = AccessLogAtoms(request, response, request_time)
        method, version = atoms["m"], atoms["H"]
        path = request["raw_path"].decode("ascii", "backslashreplace")
        query = request["query_string"].decode("ascii", "backslashreplace")
        target = f"{path}?{query}" if query else path
        atoms |= {
            "r": f"{method} {path} {version}",
            "R": f"{method} {target} {version}",
            "U": path,
            "Uq": target,
            "q": query,
        }
        atoms.update({key: _quoted(value) for key, value in atoms.items()})
        return atoms


def _quoted(value: object) -> str:
    return printable(str(value)).replace('"', "\\x22")
