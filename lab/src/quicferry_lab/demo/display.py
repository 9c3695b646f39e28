"""What the demo shows: a live table while it runs, and tables and a picture at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from quicferry_lab.demo.chart import service_time_chart
from quicferry_lab.demo.results import ClientProgress, ClientReport, DemoResult
from quicferry_lab.demo.settings import ClientPlan, Settings
from quicferry_lab.emulation import PathSpec

MAX_ROWS = 16
PLAIN_INTERVAL = 1.0
CHART_WIDTH = 100
LEGEND = """\
  ok, failed: requests; MB: verified; times in ms. max gap: longest time without
  response bytes; at switch: the same, from the network switch to half a second
  after it; first: from the network switch to the first response after it"""


class Display:
    """Shows a run of the demo on a console; live in a terminal, else as plain lines.

    Use it as a context manager around the run.
    """

    def __init__(self, console: Console, settings: Settings) -> None:
        self._console = console
        self._settings = settings
        self._plans = {plan.id: plan for plan in settings.plans()}
        self._clients: dict[int, ClientProgress] = {}
        self._notes: list[str] = []
        self._started = time.monotonic()
        self._plain_due = self._started + PLAIN_INTERVAL
        self._loaded: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=8,
                transient=True,
            )
            self._live.start()
        self.note(f"{len(self._plans)} clients; {_describe_path(self._settings)}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Show something that happened."""
        line = f"{time.monotonic() - self._started:6.2f} s  {text}"
        self._console.print(line, highlight=False, markup=False)

    def progress(self, progress: ClientProgress) -> None:
        """Show how a client is doing."""
        if self._loaded is None and progress.requests_ok:
            self._loaded = time.monotonic()
        self._clients[progress.id] = progress
        now = time.monotonic()
        if self._live is None and now >= self._plain_due:
            self._plain_due = now + PLAIN_INTERVAL
            self.note(self._summary())

    def _summary(self) -> str:
        clients = self._clients.values()
        done = sum(client.requests_ok for client in clients)
        failed = sum(client.requests_failed for client in clients)
        verified = sum(client.bytes_verified for client in clients)
        return f"{done} requests ok, {failed} failed, {_size(verified)} verified"

    def _render(self) -> Group:
        clients = sorted(self._clients.values(), key=lambda client: client.id)
        table = _table("id", "protocol", "server at", numbers=("ok", "failed", "MB", "max gap"))
        table.add_column("status", no_wrap=True)
        for client in clients[:MAX_ROWS]:
            table.add_row(
                str(client.id),
                self._plans[client.id].protocol,
                client.server,
                str(client.requests_ok),
                str(client.requests_failed),
                f"{client.bytes_verified / 1e6:.1f}",
                _milliseconds(client.longest_gap),
                client.status,
            )
        hidden = len(clients) - MAX_ROWS
        more = [Text(f"and {hidden} more clients")] if hidden > 0 else []
        return Group(self._bar(), table, *more, Text(self._summary()))

    def _bar(self) -> Table:
        elapsed = 0.0 if self._loaded is None else time.monotonic() - self._loaded
        duration = self._settings.duration
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=duration, completed=min(elapsed, duration), width=40),
            f"{min(elapsed, duration):.1f} of {duration:g} s",
        )
        return bar


def print_result(console: Console, result: DemoResult) -> None:
    """Print what a run found out: the relocations, a table per client, and the picture."""

    def say(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    for relocation in result.relocations:
        ready = (relocation.ready_at - relocation.imminent_at) * 1000
        completed = (relocation.completed_at - relocation.switched_at) * 1000
        say(f"moved from {relocation.source} to {relocation.destination}")
        say(f"  ready {ready:.0f} ms after the announcement", "dim")
        say(f"  all migrations completed {completed:.0f} ms after the network switch", "dim")
    say()
    console.print(_client_table(result))
    say(LEGEND, "dim")
    say()
    say(service_time_chart(result, width=min(CHART_WIDTH, console.width - 1)))
    say()
    closed = [str(plan.id) for plan, report in result.clients if report.reconnects]
    if closed:
        say(
            'closed with "server migrated", for want of the extension, and connected again: '
            f"client {', '.join(closed)}"
        )
    for problem in result.problems:
        say(f"FAILED: {problem}", "bold red")
    if result.ok:
        say("OK: every request was answered, and every body was right", "bold green")


def _client_table(result: DemoResult) -> Table:
    numbers = ("ok", "failed", "MB", "max gap", "at switch", "first")
    table = _table("id", "protocol", "moved", numbers=numbers)
    for plan, report in result.clients:
        table.add_row(*_client_row(result, plan, report))
    return table


def _client_row(result: DemoResult, plan: ClientPlan, report: ClientReport) -> list[str]:
    moved = "again" if report.reconnects else "yes" if report.migrations else "no"
    return [
        str(plan.id),
        plan.protocol,
        moved,
        str(report.requests_ok),
        str(report.requests_failed),
        f"{report.bytes_verified / 1e6:.1f}",
        _milliseconds(report.longest_gap.seconds),
        _milliseconds(result.gap_at_switch(report)),
        _milliseconds(result.switch_to_first_response(report)),
    ]


def _table(*texts: str, numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _describe_path(settings: Settings) -> str:
    before, after = (_describe_side(path) for path in (settings.before, settings.after))
    return before if before == after else f"{before}; after the move {after}"


def _describe_side(path: PathSpec) -> str:
    if path.is_transparent:
        return "bare loopback"
    rate = "no rate limit" if path.rate_mbit is None else f"{path.rate_mbit:g} Mbit/s each"
    return f"emulated path: {path.rtt_ms:g} ms RTT, {rate}, {path.loss_percent:g} % loss"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
