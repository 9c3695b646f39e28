"""A worker process: some of the demo's clients.

Run as ``python -m quicferry_lab.demo.worker``. It reads one JSON object per line from standard
input and writes one per line to standard output.

In: first the `WorkerSettings`; then ``{"do": "begin"}`` starts the load, ``{"do": "probe"}`` tells
proactive clients that the server has moved, ``{"do": "stop"}`` ends the load. When the input ends,
so does the worker: it never outlives the demo.

Out: ``{"event": "connected", "client": 1}`` for each client, ``{"event": "progress", "clients":
[...]}`` a few times a second, and at the end ``{"event": "report", "client": {...}}`` for each.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from dataclasses import asdict

from quicferry.protocol import QuicferryError
from quicferry_lab.demo.lines import open_input, say
from quicferry_lab.demo.load import ClientLoad
from quicferry_lab.demo.settings import WorkerSettings

PROGRESS_INTERVAL = 0.2


async def _obey(
    lines: asyncio.StreamReader,
    loads: list[ClientLoad],
    begin: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    """Follow the orchestrator's commands until it says stop.

    Raises:
        QuicferryError: The orchestrator is gone.
    """
    while line := await lines.readline():
        command = json.loads(line)["do"]
        if command == "begin":
            begin.set()
        elif command == "probe":
            for load in loads:
                load.probe()
        elif command == "stop":
            stop.set()
    raise QuicferryError("the demo has ended, so its worker ends as well")


async def _report_progress(loads: list[ClientLoad]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL)
        say("progress", clients=[asdict(load.progress()) for load in loads])


async def _run_clients(loads: list[ClientLoad], begin: asyncio.Event, stop: asyncio.Event) -> None:
    async def run(load: ClientLoad) -> None:
        await load.run(lambda: say("connected", client=load.plan.id), begin, stop)

    await asyncio.gather(*(run(load) for load in loads))


async def work() -> None:
    """Run the clients that the first line of the input names, and report on them.

    Raises:
        QuicferryError: A client could not connect, or the orchestrator is gone.
    """
    gc.freeze()  # a pause of the collector would look like one of the server
    lines = await open_input()
    settings = WorkerSettings.decode(json.loads(await lines.readline()))
    loads = [ClientLoad(plan, settings) for plan in settings.clients]
    begin, stop = asyncio.Event(), asyncio.Event()
    helpers = [
        asyncio.create_task(_obey(lines, loads, begin, stop)),
        asyncio.create_task(_report_progress(loads)),
    ]
    clients = asyncio.create_task(_run_clients(loads, begin, stop))
    tasks = [clients, *helpers]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for load in loads:
        say("report", client=load.report().encode())


def main() -> int:
    """Run the worker and return its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which ends its workers
    try:
        asyncio.run(work())
    except QuicferryError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
