"""An OpenAI-compatible server in a thread, with answers in the shapes that vLLM, SGLang and hosted APIs publish."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rrm_jax.sampling.endpoint import Patience
from rrm_jax.sampling.protocol import Decoding, Request

KEY = "sk-secret-0123456789"
QUICK = Patience(timeout=10, retries=4, pause=0.01)


def requests(count, decoding=Decoding(max_new_tokens=20), **fields):
    return [Request(f"r{at}", (5, 6, at), decoding, sample=at % 2, seed=3, **fields) for at in range(count)]


class StubServer:
    """`answer(path, body)` gives an answer's JSON, or (status, headers, content) as it is; it may sleep.

    Keeps the bodies and headers it received, and the most requests that were open together.
    """

    def __init__(self, answer: Callable[[str, dict], Any]):
        self.answer, self.lock = answer, threading.Lock()
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.open = self.most_open = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.bodies.append(body)
                    stub.paths.append(self.path)
                    stub.keys.append(self.headers["Authorization"])
                    stub.times.append(time.monotonic())
                    stub.open += 1
                    stub.most_open = max(stub.most_open, stub.open)
                try:
                    made = stub.answer(self.path, body)
                finally:
                    with stub.lock:
                        stub.open -= 1
                status, headers, content = made if isinstance(made, tuple) else (200, {}, json.dumps(made).encode())
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def vllm(text: str, ids: list[int] | None = None, finish: str = "stop", logprobs: list[float] | None = None) -> dict:
    """A text completion of vLLM; with `ids`, one that was asked for with return_token_ids."""
    choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    if ids is not None:
        choice |= {"token_ids": ids, "prompt_token_ids": [1]}
    if logprobs is not None:
        choice["logprobs"] = {"token_logprobs": logprobs, "tokens": ["x"] * len(logprobs), "text_offset": []}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def chat(content: str | None, finish: str = "stop", **message: Any) -> dict:
    """A chat completion; `message` adds fields such as reasoning_content."""
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def stub_servers():
    """For a fixture: `start(answer)` → a StubServer that is closed afterwards."""
    servers = []

    def start(answer):
        servers.append(StubServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
