"""What has to differ in aioquic's tests when migration is on, each with its reason.

Both sides then send one transport parameter more: `server_migration_suite`, 4 bytes (2 of
identifier, 1 of length, 1 of value). Tests that state exact sizes are shifted by just that. No test
is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class StaleAdjustmentError(Exception):
    """A test no longer reads as an adjustment expects: compare the two and adjust it anew."""


@dataclass(frozen=True)
class Adjustment:
    """`old` becomes `new` in a test module, where it must occur `times` times, and why."""

    file: str
    old: str
    new: str
    reason: str
    times: int = 1

    def apply(self, tests: Path) -> None:
        """Make the replacement in the folder `tests`."""
        path = tests / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != self.times:
            raise StaleAdjustmentError(
                f"{self.file} has {text.count(self.old)} times, not {self.times}: {self.old}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


ADJUSTMENTS = (
    Adjustment(
        "test_connection.py",
        "SERVER_INITIAL_DATAGRAM_SIZES = [1200, 1162]",
        "SERVER_INITIAL_DATAGRAM_SIZES = [1200, 1166]",
        "The server's first flight carries its transport parameters: 4 bytes more.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertEqual(datagram_sizes(items), [1200, 1164])",
        "self.assertEqual(datagram_sizes(items), [1200, 1168])",
        "The same flight sent again, with longer packet numbers: 4 bytes more.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertEqual(datagram_sizes(items), [1162])",
        "self.assertEqual(datagram_sizes(items), [1166])",
        "The rest of the same flight, sent again: 4 bytes more.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertEqual(network_path.bytes_sent, 3562)",
        "self.assertEqual(network_path.bytes_sent, 3566)",
        "1200 + 1162 + 1200 bytes become 1200 + 1166 + 1200.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertEqual(datagram_sizes(items), [1200, 1200, 1155, 45])",
        "self.assertEqual(datagram_sizes(items), [1200, 1200, 1159, 41])",
        "The handshake takes 4 bytes more of the 3600 that may be sent to an unvalidated address, "
        "so 4 fewer are left for 1-RTT data.",
    ),
    Adjustment(
        "test_connection.py",
        "client._loss.congestion_window - client._loss.bytes_in_flight, 684",
        "client._loss.congestion_window - client._loss.bytes_in_flight, 696",
        "The INITIAL packets are 4 bytes longer: the window grows by 4 more when one is "
        "acknowledged, and the two datagrams that 0-RTT data shares with one hold 4 fewer each.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertEqual(datagram_sizes(items), [1200, 580])",
        "self.assertEqual(datagram_sizes(items), [1200, 592])",
        "The 12 bytes of the adjustment above are used.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertEqual(datagram_sizes(items), [1200] * 10 + [1110])",
        "self.assertEqual(datagram_sizes(items), [1200] * 10 + [1118])",
        "The acknowledged handshake grows the window by 4 bytes more, and 4 bytes fewer of 1-RTT "
        "data are in flight: see [1200, 1200, 1159, 41] above.",
    ),
    Adjustment(
        "test_connection.py",
        "            self.assertEqual(server._loss.bytes_in_flight, 14355)\n"
        "            self.assertEqual(server._loss.congestion_window, 14355)\n",
        "            self.assertEqual(server._loss.bytes_in_flight, 14359)\n"
        "            self.assertEqual(server._loss.congestion_window, 14359)\n",
        "The same window, which has grown by 4 bytes more.",
    ),
    Adjustment(
        "test_connection.py",
        "            self.assertEqual(server._loss.bytes_in_flight, 13155)\n"
        "            self.assertEqual(server._loss.congestion_window, 7177)\n",
        "            self.assertEqual(server._loss.bytes_in_flight, 13159)\n"
        "            self.assertEqual(server._loss.congestion_window, 7179)\n",
        "The same after a loss, which halves the window.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertAlmostEqual(server.get_timer(), 0.40822425)",
        "self.assertAlmostEqual(server.get_timer(), 0.40822199)",
        "Pacing follows from the congestion window, which has grown by the bytes acknowledged in "
        "the handshake: 4 more.",
        times=2,
    ),
    Adjustment(
        "test_connection.py",
        "    def test_receive_datagram_unknown_server_address(self) -> None:\n"
        "        with client_and_server() as (client, server):\n",
        "    def test_receive_datagram_unknown_server_address(self) -> None:\n"
        "        from quicferry.protocol import ClientMigration, MigrationProtocol\n"
        "        announced = ClientMigration(\n"
        "            protocols=MigrationProtocol.EXPLICIT | MigrationProtocol.POOL_OF_ADDRESSES\n"
        "        )\n"
        '        with client_and_server(client_options={"server_migration": announced}) as (\n'
        "            client,\n"
        "            server,\n"
        "        ):\n",
        "A genuine packet from an unknown address moves the connection where a symmetric protocol "
        "was negotiated: that is what these protocols are. With the other two it is dropped, as "
        "the test demands.",
    ),
)
