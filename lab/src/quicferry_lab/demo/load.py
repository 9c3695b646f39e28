"""One client of the demo: requests back to back beside large downloads, every byte checked."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from quicferry.client import HttpClient, connect
from quicferry.io import ConnectFailed, ConnectionLost, DatagramLink, QlogDirectory
from quicferry.protocol import (
    Address,
    ClientMigration,
    MigrationCompleted,
    MigrationEvent,
    MigrationProtocol,
    Policy,
    QuicferryError,
    Scheduler,
    protocol_from_name,
)
from quicferry.transport import (
    Configuration,
    NetworkAddress,
    network_address,
)
from quicferry_lab.demo import content
from quicferry_lab.demo.content import Verifier, WrongBodyError
from quicferry_lab.demo.results import Arrival, ClientProgress, ClientReport, Gap, Sample
from quicferry_lab.demo.settings import ClientPlan, WorkerSettings
from quicferry_lab.demo.watch import Watch
from quicferry_lab.emulation import EmulatedNetwork, PathSpec
from quicferry_lab.patience import patient

ECHO_SIZE = 1024
LARGE_DOWNLOAD = 64 * 1024
"""Bytes of each of the downloads that follow one another beside the small requests."""
DOWNLOADS = 2
"""How many of them are under way, so that there is always something on the path."""
PAYLOAD_SHARE = 0.9
SMALLEST_WINDOW = 2048
REQUEST_TIMEOUT = patient(20.0)
RETRY_INTERVAL = 0.005
COME_AGAIN = ("server migrated", "the server is about to move")
"""What the server says to clients that cannot follow it, at the beginning of the reason."""
SHORTEST_GAP = 0.001
MOST_ERRORS = 10
SEARCHING_PROTOCOLS = MigrationProtocol.EXPLICIT | MigrationProtocol.POOL_OF_ADDRESSES
"""Those whose clients can be asked to look for the server."""


class RequestFailedError(QuicferryError):
    """A request was not answered, or not with success."""


@dataclass
class Tally:
    """What happened to one client so far."""

    requests_ok: int = 0
    requests_failed: int = 0
    bytes_verified: int = 0
    migrations: int = 0
    longest_gap: float = 0.0
    last_response_at: float | None = None
    gaps: list[Gap] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def waiting(self, now: float) -> None:
        """Note that from now on response bytes are due."""
        self.last_response_at = now

    def heard(self, server: str, now: float) -> None:
        """Note that response bytes came, after the last datagram came from `server`."""
        self.end_gap(now)
        if not self.arrivals or self.arrivals[-1].server != server:
            self.arrivals.append(Arrival(now, server))

    def end_gap(self, now: float) -> None:
        """Measure the time without response bytes that ends now."""
        if self.last_response_at is not None:
            gap = Gap(self.last_response_at, now)
            self.longest_gap = max(self.longest_gap, gap.seconds)
            if gap.seconds >= SHORTEST_GAP:
                self.gaps.append(gap)
        self.last_response_at = now

    def failed(self, error: str) -> None:
        """Note a request that failed."""
        self.requests_failed += 1
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(error)


class ClientLoad:
    """One client and its load.

    Args:
        plan: Which client this is.
        settings: Those of the worker process that it lives in.
    """

    def __init__(self, plan: ClientPlan, settings: WorkerSettings) -> None:
        self.plan = plan
        self.tally = Tally()
        self._settings = settings
        self._status = "connecting"
        self._closed_for_migration = False
        self._reconnects = 0
        self._at = settings.server
        self._http: HttpClient | None = None
        self._watch: Watch | None = None
        self._rng = random.Random(plan.seed)

    async def run(
        self, connected: Callable[[], None], begin: asyncio.Event, stop: asyncio.Event
    ) -> None:
        """Connect, and keep the server busy.

        Args:
            connected: Called when the handshake is complete.
            begin: Starts the load.
            stop: Ends it; the requests that are under way are finished first, and so is one of the
                server's last address if the settings name it.

        Raises:
            QuicferryError: The client could not connect.
        """
        await self._visit(self._settings.server, connected, begin, stop)

    async def _visit(
        self,
        address: str,
        connected: Callable[[], None],
        begin: asyncio.Event,
        stop: asyncio.Event,
    ) -> None:
        """Connect to the server at an address, and keep it busy."""
        server = Address.parse(address)
        async with connect(
            str(server.host),
            server.port,
            configuration=self._configuration(),
            create_protocol=HttpClient,
            wrap_transport=self._wrap,
        ) as http:
            self._http = http
            http.on_migration_event(self._on_migration_event)
            self._status = "connected"
            connected()
            await begin.wait()
            self._status = "running"
            if self.tally.last_response_at is None:
                self.tally.waiting(time.monotonic())
            downloads = [asyncio.create_task(self._downloads(http, stop)) for _ in range(DOWNLOADS)]
            await self._requests(http, stop)
            await asyncio.gather(*downloads)
            if self._status == "running":
                self.tally.end_gap(time.monotonic())
                self._status = "done"
            coming = None
            if self._closed_for_migration and not stop.is_set():
                self._closed_for_migration = False
                coming = asyncio.create_task(self._come_again(begin, stop))
        if coming is not None:
            await coming

    async def _come_again(self, begin: asyncio.Event, stop: asyncio.Event) -> None:
        """Connect to where the server has gone, as somebody would who has looked up its name."""
        address = next(each for each in self._settings.paths if each != self._at)
        self._at = address
        self._reconnects += 1
        until = time.monotonic() + REQUEST_TIMEOUT
        while True:
            try:
                await self._visit(address, lambda: None, begin, stop)
            except ConnectFailed:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(RETRY_INTERVAL)
            else:
                return

    def probe(self) -> None:
        """Look for the server now, as the proactive policy does when it is told to."""
        plan = self.plan
        if self._http is None or plan.policy != Policy.PROACTIVE.value:
            return
        if protocol_from_name(plan.protocol) in SEARCHING_PROTOCOLS:
            self._http.probe_server_address()

    def progress(self) -> ClientProgress:
        """Return what the live display shows."""
        tally = self.tally
        return ClientProgress(
            id=self.plan.id,
            status=self._status,
            server=self._server(),
            requests_ok=tally.requests_ok,
            requests_failed=tally.requests_failed,
            bytes_verified=tally.bytes_verified,
            migrations=tally.migrations,
            longest_gap=tally.longest_gap,
        )

    def report(self) -> ClientReport:
        """Return everything that happened."""
        tally = self.tally
        return ClientReport(
            id=self.plan.id,
            status=self._status,
            reconnects=self._reconnects,
            requests_ok=tally.requests_ok,
            requests_failed=tally.requests_failed,
            bytes_verified=tally.bytes_verified,
            migrations=tally.migrations,
            gaps=tuple(tally.gaps),
            samples=tuple(tally.samples),
            arrivals=tuple(tally.arrivals),
            errors=tuple(tally.errors),
        )

    def _configuration(self) -> Configuration:
        migration = None
        if self.plan.has_extension:
            migration = ClientMigration(
                protocols=protocol_from_name(self.plan.protocol),
                policy=Policy(self.plan.policy),
                scheduler=Scheduler(self._settings.scheduler),
                seed=self.plan.seed,
            )
        configuration = Configuration(
            is_client=True, verify_mode=ssl.CERT_REQUIRED, server_migration=migration
        )
        configuration.load_verify_locations(cafile=self._settings.ca_file)
        capacities = [path.capacity_bytes for path in self._settings.paths.values()]
        if (capacity := min((each for each in capacities if each), default=None)) is not None:
            # As a client that knows its own link: what it lets the server send fits into the queue
            # of the bottleneck. Losses would be seen as gaps that have nothing to do with a move.
            share = int(capacity * PAYLOAD_SHARE) // (DOWNLOADS + 1)
            configuration.max_stream_data = max(share, SMALLEST_WINDOW)
        if self._settings.qlog is not None:
            configuration.quic_logger = QlogDirectory(Path(self._settings.qlog))
        return configuration

    def _wrap(self, inner: DatagramLink) -> DatagramLink:
        self._watch = Watch(inner)
        paths: dict[NetworkAddress, PathSpec] = {
            network_address(Address.parse(address)): spec.with_seed(spec.seed + self.plan.seed)
            for address, spec in self._settings.paths.items()
        }
        return EmulatedNetwork(paths).wrap(self._watch)

    def _on_migration_event(self, event: MigrationEvent) -> None:
        if isinstance(event, MigrationCompleted):
            self.tally.migrations += 1

    def _server(self) -> str:
        return "" if self._watch is None else self._watch.server

    # The load

    def _goes_on(self, stop: asyncio.Event) -> bool:
        if self._status != "running" or not stop.is_set():
            return self._status == "running"
        last, arrivals = self._settings.last_server, self.tally.arrivals
        return last is not None and not (arrivals and arrivals[-1].server == last)

    async def _requests(self, http: HttpClient, stop: asyncio.Event) -> None:
        kinds = {"echo": self._echo, "download": self._sized_download, "upload": self._upload}
        while self._goes_on(stop):
            kind = self._rng.choices(tuple(kinds), weights=(8, 1, 1))[0]
            started = time.monotonic()
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await kinds[kind](http)
            except TimeoutError:
                self.tally.failed(f"{kind} was not answered within {REQUEST_TIMEOUT:.0f} s")
            except ConnectionLost as exc:
                self._lost(exc)
            except QuicferryError as exc:
                self.tally.failed(f"{kind}: {exc}")
            else:
                self.tally.requests_ok += 1
                self.tally.samples.append(Sample(started, time.monotonic() - started, kind))

    async def _echo(self, http: HttpClient) -> None:
        seed = self._rng.getrandbits(31)
        verifier = Verifier(seed, ECHO_SIZE)
        await self._exchange(http, "POST", "/echo", content.body(seed, ECHO_SIZE), verifier)

    async def _sized_download(self, http: HttpClient) -> None:
        seed, size = self._rng.getrandbits(31), self._size()
        verifier = Verifier(seed, size)
        await self._exchange(http, "GET", f"/bytes/{size}?seed={seed}", b"", verifier)

    async def _upload(self, http: HttpClient) -> None:
        payload = content.body(self._rng.getrandbits(31), self._size())
        async with self._stream(http, "POST", "/upload", payload) as chunks:
            answer = b"".join([chunk async for chunk in chunks])
        digest = hashlib.sha256(payload).hexdigest()
        if f'"sha256": "{digest}"'.encode() not in answer:
            raise WrongBodyError(f"an upload of {len(payload)} bytes arrived changed")
        self.tally.bytes_verified += len(payload)

    async def _downloads(self, http: HttpClient, stop: asyncio.Event) -> None:
        """Keep a large download under way."""
        while self._goes_on(stop):
            seed = self._rng.getrandbits(31)
            path = f"/bytes/{LARGE_DOWNLOAD}?seed={seed}"
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self._exchange(http, "GET", path, b"", Verifier(seed, LARGE_DOWNLOAD))
            except TimeoutError:
                self.tally.failed(f"a download was not over within {REQUEST_TIMEOUT:.0f} s")
            except ConnectionLost as exc:
                self._lost(exc)
            except QuicferryError as exc:
                self.tally.failed(f"large download: {exc}")

    async def _exchange(
        self, http: HttpClient, method: str, path: str, data: bytes, verifier: Verifier
    ) -> None:
        async with self._stream(http, method, path, data) as chunks:
            async for chunk in chunks:
                before = verifier.verified
                verifier.feed(chunk)
                self.tally.bytes_verified += verifier.verified - before
            before = verifier.verified
            verifier.finish()
            self.tally.bytes_verified += verifier.verified - before

    @asynccontextmanager
    async def _stream(
        self, http: HttpClient, method: str, path: str, data: bytes
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with http.stream(method, path, body=data) as response:
            if response.status != 200:
                raise RequestFailedError(f"{method} {path} was answered with {response.status}")

            async def chunks() -> AsyncIterator[bytes]:
                async for chunk in response:
                    self.tally.heard(self._server(), time.monotonic())
                    yield chunk

            yield chunks()

    def _size(self) -> int:
        """Return a size between 1 KB and 64 KB, small ones as often as large ones."""
        return round(1024 * 2 ** self._rng.uniform(0, 6))

    def _lost(self, error: ConnectionLost) -> None:
        if self._status != "running":
            return
        if error.reason.startswith(COME_AGAIN) and not self.plan.has_extension:
            self._closed_for_migration = True
            self._status = "closed: server migrated"
            return
        self._status = f"lost: {error}"
        self.tally.failed(f"connection lost: {error}")
