"""The process: listening, and a stop that finishes what was accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket as socketlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from socket import socket

import uvicorn

from ryzc.errors import UserError
from ryzc.runtime.server.app import create_app
from ryzc.runtime.server.backend import Engine
from ryzc.runtime.server.config import Config
from ryzc.runtime.server.errors import ApiError
from ryzc.runtime.server.log import log
from ryzc.runtime.server.models import Entry, Models
from ryzc.runtime.server.service import Service


def serve(config: Config, entries: Sequence[Entry], load: Callable[[Entry], Engine], budget: int | None) -> None:
    """Serve until SIGTERM or Ctrl-C, and then until what was accepted is answered; a second one ends at once.

    Args:
        config: the settings.
        entries: what can be loaded, the default first; it is loaded before anything is accepted.
        load: makes an engine of an entry.
        budget: bytes that all loaded models may take.

    Raises:
        UserError: the first model cannot be loaded, or the address is taken.
    """
    log.level, log.form = config.log_level, config.log_format
    lines = logging.getLogger("uvicorn")
    lines.handlers, lines.propagate = [_Lines()], False
    sys.setswitchinterval(SWITCH)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, entries, load, budget))


SWITCH = 0.0005
"""Seconds after which the event loop gives way to the engine's thread, which comes back from native code every step."""


GRACE = 0.1
"""Seconds for connections that are on their way when the server is stopped."""

PATIENCE = 1.0
"""Seconds for the requests of those that were taken."""


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    return uvicorn.Config("", log_config=None).get_loop_factory()


async def _serve(config: Config, entries: Sequence[Entry], load: Callable[[Entry], Engine], budget: int | None) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="ryzc-load") as loading:
        models = Models(entries, load, loading, budget=budget, patience=config.load_timeout)
        try:
            models.release(await models.lease(None))
        except ApiError as error:
            raise error.__cause__ or UserError(error.message) from None
        service = Service(config, models)
        server = Server(service)
        await server.serve()
        if not server.started:
            raise UserError(f"cannot listen on {config.host}:{config.port}", hint="choose another --port or --host")


def _forget_the_deaf(listening: int, seconds: float) -> None:
    """Let the kernel end connections whose clients take nothing for so long.

    A closed transport first sends what it holds; without this it would wait for such a client for ever, and so would a
    stop. Accepted sockets inherit the option; where a system lacks it, a second signal stops.
    """
    if seconds and hasattr(socketlib, "TCP_USER_TIMEOUT"):
        with socketlib.socket(fileno=os.dup(listening)) as same:
            same.setsockopt(socketlib.IPPROTO_TCP, socketlib.TCP_USER_TIMEOUT, int(1000 * seconds))


class _Lines(logging.Handler):
    """What uvicorn has to say, in our log: only what went wrong."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        log.write("error" if record.levelno >= logging.ERROR else "warning", record.getMessage())


class Server(uvicorn.Server):
    """uvicorn, with our signals and our log.

    Args:
        service: what it serves.
    """

    def __init__(self, service: Service) -> None:
        config = service.config
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=config.host,
                port=config.port,
                ssl_certfile=config.ssl_certfile,
                ssl_keyfile=config.ssl_keyfile,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=round(config.drain_timeout) or None,
                ws="none",
            )
        )
        self._service = service

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, and say where."""
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's word for an address that is taken
            self.should_exit = True
            return
        config = self._service.config
        scheme = "https" if config.ssl_certfile else "http"
        for listening in self.servers:
            for one in listening.sockets:
                _forget_the_deaf(one.fileno(), 1.5 * config.send_timeout)  # after we have, who log it
            host, port = listening.sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            log.info("listening", url=f"{scheme}://{shown}:{port}", models=",".join(self._service.models.entries))

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Let requests that are on their way come in, to be told 503 instead of nothing, and then wait for the rest."""
        if not self.force_exit:
            await asyncio.sleep(GRACE)
            for listening in self.servers:
                listening.close()
            end = time.monotonic() + PATIENCE
            while self._silent() and not self.force_exit and time.monotonic() < end:
                await asyncio.sleep(GRACE / 5)
        await super().shutdown(sockets)

    def _silent(self) -> bool:
        """Whether a connection is open on which no request has come yet."""
        return any(getattr(connection, "cycle", None) is None for connection in self.server_state.connections)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C drain; the process then ends with 0."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # all is answered: the process ends by itself, with 0

    def stop(self) -> None:
        """Accept nothing more and end when all is answered; called again, end now."""
        if self.should_exit:
            self.force_exit = True
            return
        self._service.draining = True
        self.should_exit = True
        log.info("stopping", open=self._service.http.open)
