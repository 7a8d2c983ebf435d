"""The process: it listens while the weights are loaded, and ends in order when it is told to."""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable

import uvicorn
from fastapi import FastAPI

from rrm_jax.errors import RrmError
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.serving.engine import Engine
from rrm_jax.serving.service import Service

_SWITCH_SECONDS = 0.001
"""How long a thread may keep the interpreter from the engine's, whose devices wait for it; Python's own is 5 ms."""


def serve(
    service: Service, app: FastAPI, load: Callable[[], Sampler], *, host: str, port: int, grace: float,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Serves until SIGTERM or SIGINT: accepts no more then, finishes what runs within `grace` seconds, and returns.

    `load` gives the sampler, in a thread of its own. Raises its error, RrmError where it is the input's, and RrmError
    where the address cannot be had.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=max(1, round(grace)),
        backlog=2048, lifespan="on", timeout_keep_alive=75,  # above the usual minute of clients and proxies
    )  # fmt: skip
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a client that goes is no error
    try:
        listener = config.bind_socket()
    except SystemExit:
        raise RrmError(f"cannot listen on {host}:{port}; another port is --port") from None
    failures: list[BaseException] = []

    def open_engine() -> None:
        try:
            service.engine = Engine(load(), service.limits.waiting)
            say(f"ready: {service.model.name}")
        except BaseException as error:
            failures.append(error)
            server.should_exit = True

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=open_engine, name="loading", daemon=True).start()
        say(f"listening on http://{host}:{listener.getsockname()[1]}")
        yield
        service.close()

    app.router.lifespan_context = lifespan
    # uvicorn raises the signal that ended it again when it is done: being told to end is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
