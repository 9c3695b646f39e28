"""An ASGI application in this process: its start, its tasks, its end.

What runs it is hypercorn's: the lifespan protocol, the loop around each call. Here is what
hypercorn's own server would do around that.

An application that keeps state in memory can have it carried when its server is handed over to
another host. To this end its startup puts two asynchronous functions into the state of the lifespan
scope::

    scope["state"]["quicferry.export"]  # () -> bytes: what it knows
    scope["state"]["quicferry.import"]  # (bytes) -> None: go on from there

They are called while no call of the application for a request is running. One without them is
taken to be stateless.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from .access_log import AccessLogger
from .draining import Calls, RunningRequest
from .errors import ApplicationError, ClientDisconnected

logger = logging.getLogger("quicferry.application")
access_logger = logging.getLogger("quicferry.access")

AsgiApplication = ASGIFramework
"""The type of an ASGI application."""

EXPORT = "quicferry.export"
IMPORT = "quicferry.import"
MAX_STATE_SIZE = 64 << 20
"""Bytes of state that an application can have carried."""


DEFAULT_STARTUP_TIMEOUT = 60.0
"""Seconds that an application has to start."""

DEFAULT_LIMIT_CONCURRENCY = 4096
"""Calls of an application that may be open at once."""

TIME_TO_END = 1.0
"""Seconds that a call of the application has to end after a disconnect, or being cancelled."""


class ApplicationTasks(TaskGroup):
    """The tasks of an application. One that fails does not take the others with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:
        """Run a coroutine function in a task."""
        task: asyncio.Task[None] = self._loop.create_task(func(*args))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def finish(self, grace: float) -> None:
        """Wait for `grace` seconds until all tasks have ended, then cancel them."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, ClientDisconnected):
            logger.error("a task of the application failed", exc_info=error)


class _Lifespan(Lifespan):
    """Remembers what the application said about a failure, which hypercorn raises inside it.

    An application that raises an error is served without startup and shutdown (asgiref, Lifespan
    Protocol). At the mere sight of the scope that is usual: it does not know the protocol. One that
    has asked for the event may have failed to start, and hypercorn does not say how.
    """

    failure: LifespanFailureError | None = None

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        state: dict[str, Any],
    ) -> None:
        super().__init__(self._watched, config, loop, state)
        self._watched_app = app
        self._is_known = False

    async def asgi_receive(self) -> ASGIReceiveEvent:
        event = await super().asgi_receive()
        self._is_known = True
        return event

    async def _watched(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        try:
            await self._watched_app(scope, receive, send, sync_spawn, call_soon)
        except LifespanFailureError:
            raise
        except Exception as exc:
            if self.startup.is_set():
                raise  # hypercorn logs it
            if self._is_known:
                logger.warning("the application is served without its startup", exc_info=exc)
            else:
                logger.info("the application does not know the lifespan protocol: %r", exc)
            self.supported = False

    async def asgi_send(self, message: ASGISendEvent) -> None:
        try:
            await super().asgi_send(message)
        except LifespanFailureError as exc:
            self.failure = exc
            raise


class Application:
    """An ASGI application that is being served.

    Args:
        app: The application.
        startup_timeout: Seconds that it has to start.
        limit_concurrency: How many calls for requests may be open at once.

    Attributes:
        calls: Those that run.
        open_calls: How many run or are about to.
    """

    def __init__(
        self,
        app: ASGIFramework,
        *,
        startup_timeout: float = DEFAULT_STARTUP_TIMEOUT,
        limit_concurrency: int = DEFAULT_LIMIT_CONCURRENCY,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.config = Config()
        self.config.errorlog = logger
        self.config.logger_class = AccessLogger
        self.config.include_server_header = False
        self.config.startup_timeout = startup_timeout
        self.config.include_date_header = False  # hypercorn adds a second one
        if access_logger.isEnabledFor(logging.INFO):
            self.config.accesslog = access_logger
        self.call = ASGIWrapper(app)
        self.context = WorkerContext(None)
        self.state: dict[str, Any] = {}
        self.tasks = ApplicationTasks(loop)
        self.calls = Calls()
        self.open_calls = 0
        self._limit = limit_concurrency
        self._is_full = False
        self._complaints: set[str] = set()
        self._lifespan = _Lifespan(self.call, self.config, loop, self.state)
        self._lifespan_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run the application's startup.

        Raises:
            ApplicationError: If it fails, does not end in time, or leaves half of the hooks for a
                hand-over.
        """
        self._lifespan_task = asyncio.create_task(self._lifespan.handle_lifespan())
        try:
            await self._lifespan.wait_for_startup()
        except LifespanTimeoutError as exc:
            await self._end_lifespan()
            raise ApplicationError(
                f"the application does not start within {self.config.startup_timeout:g} s; "
                "--startup-timeout (in Python, startup_timeout) allows more"
            ) from exc
        except asyncio.CancelledError:
            await self._end_lifespan()
            raise
        if self._lifespan.failure is not None:
            await self._end_lifespan()
            raise ApplicationError(
                f"the application failed to start: {self._lifespan.failure}; see its own log"
            ) from self._lifespan.failure
        hooks = [self.state.get(name) for name in (EXPORT, IMPORT)]
        if any(hook is not None for hook in hooks) and not all(map(callable, hooks)):
            await self.stop()
            raise ApplicationError(
                f"the application's state needs functions for both {EXPORT!r} and {IMPORT!r}, or "
                "for neither"
            )

    async def stop(self) -> None:
        """Let requests come to an end, for a second at most, and run the application's shutdown.

        Raises:
            ApplicationError: If that fails, or does not end in time.
        """
        await self.context.terminated.set()
        await self.tasks.finish(TIME_TO_END)
        try:
            await self._lifespan.wait_for_shutdown()
        except LifespanTimeoutError as exc:
            raise ApplicationError(
                f"the shutdown of the application does not end within "
                f"{self.config.shutdown_timeout:g} s; see its own log"
            ) from exc
        finally:
            await self._end_lifespan()
        if self._lifespan.failure is not None:
            raise ApplicationError(
                f"the application failed to stop: {self._lifespan.failure}; see its own log"
            ) from self._lifespan.failure

    @property
    def has_room(self) -> bool:
        """Whether there may be one more call for a request; it is logged when that changes."""
        was_full, self._is_full = self._is_full, self.open_calls >= self._limit
        if self._is_full and not was_full:
            logger.warning(
                "%d requests are being answered, and more get status 503 "
                "(--limit-concurrency allows more)",
                self.open_calls,
            )
        return not self._is_full

    async def serve(self, request: RunningRequest, *call: Any) -> None:
        """Call the application for a request, with what `self.call` takes."""
        with self.calls.one(request):
            await self.call(*call)

    def complain(self, what: str) -> None:
        """Log, the first time, what is wrong about a response and left out of it."""
        if what not in self._complaints:
            self._complaints.add(what)
            logger.warning("%s, which is left out (this is not said again)", what)

    # A hand-over

    @property
    def has_hooks(self) -> bool:
        """Whether the application has state to be carried."""
        return self.state.get(EXPORT) is not None

    async def export(self) -> bytes | None:
        """Return the application's state; None if it has none.

        Raises:
            ApplicationError: If its hook fails, or returns what cannot be carried.
        """
        if not self.has_hooks:
            return None
        data = await self._call_hook(EXPORT)
        if not isinstance(data, bytes):
            raise ApplicationError(
                f"the application's {EXPORT!r} returned {type(data).__name__}, not bytes"
            )
        if len(data) > MAX_STATE_SIZE:
            raise ApplicationError(
                f"the application's {EXPORT!r} returned {len(data)} bytes, and at most "
                f"{MAX_STATE_SIZE} can be carried; keep large state outside of the process"
            )
        return data

    async def import_(self, data: bytes | None) -> None:
        """Let the application go on from a state.

        Args:
            data: What `export` returned on the other host.

        Raises:
            ApplicationError: If its hook fails, or only one of the two applications has state.
        """
        if data is None and self.has_hooks:
            raise ApplicationError(
                "the application here expects state, and the one at the source has none; run the "
                "same application on both hosts"
            )
        if data is not None and not self.has_hooks:
            raise ApplicationError(
                f"the application here has no {IMPORT!r} for the state of the one at the source; "
                "run the same application on both hosts"
            )
        if data is not None:
            await self._call_hook(IMPORT, data)

    async def _call_hook(self, name: str, *args: bytes) -> object:
        """Call one of the application's functions; its errors may hold its data."""
        try:
            result = self.state[name](*args)
            return await result if inspect.isawaitable(result) else result
        except Exception as exc:
            logger.exception("the application's %r failed", name)
            raise ApplicationError(
                f"the application's {name!r} failed with {type(exc).__name__}; see its own log"
            ) from exc

    async def _end_lifespan(self) -> None:
        if self._lifespan_task is not None:
            self._lifespan_task.cancel()
            await asyncio.gather(self._lifespan_task, return_exceptions=True)
