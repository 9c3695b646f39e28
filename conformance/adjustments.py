"""What has to differ in aioquic's tests when migration is on, each with its reason.

Both sides then send one transport parameter more: `server_migration_suite`, 4 bytes (2 of
identifier, 1 of length, 1 of value). The client sends another one, which says that it knows
withdrawals: 9 bytes (8 of identifier, 1 of length). Tests that state exact sizes are shifted by
just that. And both promise a shorter `max_ack_delay`: tests that state when a probe timeout ends
are shifted by the difference. No test is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOONER = 0.025 - 0.005
"""By how much a probe timeout is shorter, in seconds: `max_ack_delay` is part of it (RFC 9002
6.2.1), aioquic promises 25 ms, and an endpoint that can migrate promises 5."""


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


@dataclass(frozen=True)
class TimerAdjustment:
    """The times in the test `test` of a module, each with how many probe timeouts passed until it.

    A second timeout in a row lasts twice as long and so counts as two, and the validation of a path
    lasts three (RFC 9000 8.2.4).
    """

    file: str
    test: str
    timeouts: Mapping[str, int]

    def apply(self, tests: Path) -> None:
        """Make each of the times in the folder `tests` as much sooner as its timeouts are."""
        path = tests / self.file
        text = path.read_text(encoding="utf-8")
        found = re.search(
            rf"^    def {self.test}\(.*?(?=^    (?:def|async|@)|\Z)", text, re.DOTALL | re.MULTILINE
        )
        if found is None:
            raise StaleAdjustmentError(f"{self.file} has no {self.test}")
        body = found[0]
        for time, count in self.timeouts.items():
            if f"(), {time})" not in body:
                raise StaleAdjustmentError(f"{self.test} in {self.file} expects no timer at {time}")
            body = body.replace(f"(), {time})", f"(), {float(time) - count * SOONER:.7g})")
        path.write_text(text[: found.start()] + body + text[found.end() :], encoding="utf-8")


ADJUSTMENTS: tuple[Adjustment | TimerAdjustment, ...] = (
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
        "client._loss.congestion_window - client._loss.bytes_in_flight, 723",
        "The client's INITIAL packets are 13 bytes longer: the window grows by 13 more when one is "
        "acknowledged, and the two datagrams that 0-RTT data shares with one hold 13 fewer each.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertEqual(datagram_sizes(items), [1200, 580])",
        "self.assertEqual(datagram_sizes(items), [1200, 619])",
        "The 39 bytes of the adjustment above are used.",
    ),
    Adjustment(
        "test_connection.py",
        "self.assertLessEqual(client._loss.congestion_window, 13540)",
        "self.assertLessEqual(client._loss.congestion_window, 13553)",
        "The client's window has grown by the 13 bytes that its handshake is longer.",
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
    *(
        TimerAdjustment("test_connection.py", test, timeouts)
        for test, timeouts in {
            "test_connect_with_0rtt_and_late_0rtt_packet": {"0.425": 1, "0.4375": 1},
            "test_connect_with_0rtt_without_loss": {"0.425": 1},
            "test_connect_with_late_server_handshake": {"0.425": 1},
            "test_connect_with_lost_client_initial": {"0.625": 1},
            "test_connect_with_lost_client_stream_data": {
                "0.475": 1,
                "1.025": 3,
                "60.525": 1,
                "60.575": 1,
            },
            "test_connect_with_lost_server_finished": {"0.725": 1},
            "test_connect_with_lost_server_handshake_done": {
                "0.425": 1,
                "0.975": 3,
                "0.725": 1,
                "60.525": 1,
            },
            "test_connect_with_lost_server_initial": {"0.525": 1},
            "test_connect_with_lost_server_initial_and_handshake": {"0.625": 1},
            "test_connect_with_lost_server_initial_and_handshake_amplification_limited": {
                "1.825": 1
            },
            "test_connect_without_loss": {"0.425": 1},
            "test_idle_timeout_restarted_on_send": {"1.125": 1, "1.675": 3, "2.775": 7},
            "test_migrate_after_probing": {"0.6375": 1},
            "test_migrate_amplification_limit_ack_size": {"1.1125": 3},
            "test_migrate_amplification_limit_probe_size": {"1.1125": 3, "0.6875": 1, "0.6375": 1},
            "test_migrate_to_spoofed_address": {"1.1125": 3, "0.6375": 1, "1.5875": 5},
            "test_migrate_to_spoofed_address_with_many_ack_ranges": {"1.0625": 3},
            "test_migrate_with_lost_path_challenge": {
                "1.1125": 3,
                "0.6375": 1,
                "0.925": 2,
                "60.7375": 1,
            },
            "test_migrate_with_small_datagram_and_ack_due": {"1.0625": 3},
            "test_migrate_without_loss": {"1.1125": 3, "0.6875": 1},
            "test_migrate_without_validated_path": {"1.1125": 3},
            "test_probe_from_spoofed_address": {"0.6375": 1},
            "test_send_fin_without_data_after_full_packet": {"0.625": 1, "0.6875": 1},
        }.items()
    ),
)
