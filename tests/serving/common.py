"""A tiny model that judges and chats, and a live server on it, in this process."""

import contextlib
import string
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jax.numpy as jnp
import uvicorn

from rrm_jax.checkpoints.load import load_model
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import VoteLog
from rrm_jax.judging.template import load_template
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.quickstart import world
from rrm_jax.sampling.protocol import Decoding
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.serving.app import create_app
from rrm_jax.serving.chat import ChatModel
from rrm_jax.serving.engine import Engine
from rrm_jax.serving.service import Limits, Service
from rrm_jax.testing import tiny_config, write_hf_checkpoint

NAME = "tiny"
PAIR = {"query": "1 + 1?", "response_1": "2", "response_2": "a longer one: 3"}


def write_model(directory: Path, **shape: int) -> Path:
    """Random weights, characters as tokens, the quickstart's template. `shape` changes that of `tiny_config`."""
    vocabulary = write_word_tokenizer(directory, [*string.printable, *world.WORDS[10:]])
    config = tiny_config(vocab_size=vocabulary + vocabulary % 2, max_positions=512, **shape)
    write_hf_checkpoint(directory, config)
    (directory / "judge_template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    return directory


class World:
    """What a server is made of, and what offline answers are."""

    def __init__(self, directory: Path):
        import jax

        self.directory, self.tokenizer = directory, Tokenizer.load(directory)
        self.loaded = load_model(directory, mesh=make_mesh(devices=jax.devices()[:1]), dtype=jnp.float32)
        self.template = load_template(directory / "judge_template.toml")
        self.model = ChatModel(NAME, self.tokenizer, Decoding(max_new_tokens=40), 512)

    def sampler(self, batch_size: int = 4, block: int = 8) -> Sampler:
        return Sampler(self.loaded.config, self.loaded.params, batch_size=batch_size, block=block)

    def judge(self, generator: Any, **how: Any) -> Judge:
        """Its verdicts are always valid, after at most eight tokens of thinking."""
        how = {"thinking_budget": 8, "constrain_verdict": True, "max_prompt_tokens": 300} | how
        decoding = Decoding(max_new_tokens=40)
        return Judge(generator, self.tokenizer, self.template, decoding, model="tiny", **how)

    def service(self, log: VoteLog | None = None, engine: Engine | None = None, **limits: Any) -> Service:
        service = Service(self.model, self.judge(None), log, Limits(**limits), 4)
        service.engine = engine or Engine(self.sampler(), service.limits.waiting)
        return service


@contextlib.contextmanager
def live(service: Service, **how: Any) -> Iterator[str]:
    """A server's address, while it runs."""
    config = uvicorn.Config(create_app(service, **how), port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        service.close()


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def post(url: str, route: str, body: Any, **how: Any) -> httpx2.Response:
    return httpx2.post(url + route, json=body, timeout=60, **how)


def events(response: httpx2.Response) -> Iterator[tuple[str, str]]:
    """(name, data) of server-sent events."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, line.removeprefix("data: ")
