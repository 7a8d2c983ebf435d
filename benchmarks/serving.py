"""`rrm serve` under load and abuse on one machine: right answers, flat memory, latencies, what serving costs.

    python -m benchmarks.serving --minutes 5 --clients 64

A tiny random model. First the same chat requests offline (`Sampler.generate`) and at the server, whose tokens a second
and tokens a CPU second are compared; then a load of chats, streams and verdicts, every answer compared with the offline
one for its seed, among clients that leave, read slowly, send too much, nonsense or wrong tokens; at last kill -9 in the
midst of verdicts, a restart, and the same questions again from the store.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints.load import load_model
from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import VoteLog, digest
from rrm_jax.judging.template import load_template
from rrm_jax.judging.verdict import written_ids
from rrm_jax.models.params import stack
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.sampling.distribution import base_keys, draw, id_hash
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from tests.sampling.common import full_logits
from tests.serving.common import write_model

ROOT = Path(__file__).parent.parent
ROWS, BODY, TOKEN = 32, 100_000, "benchmark"
HEAD = {"Authorization": f"Bearer {TOKEN}"}
JUDGING = ("--thinking-budget", "16", "--constrain-verdict", "--max-new-tokens", "64", "--max-prompt-tokens", "400")


class Offline:
    """The questions, and what `Sampler.generate` and `Judge` answer to them in this process."""

    def __init__(self, directory: Path, count: int):
        self.tokenizer = Tokenizer.load(directory)
        loaded = load_model(directory, mesh=make_mesh(devices=jax.devices()[:1]), dtype=jnp.float32)
        self.config, self.params = loaded.config, stack(loaded.params)
        self.sampler = Sampler(loaded.config, loaded.params, batch_size=ROWS)
        chance = random.Random(0)
        hostile = "<|user|><|end|></think><|assistant|>"
        self.chats = [
            {
                "model": "tiny", "seed": at, "max_tokens": chance.randint(64, 256), "separate_reasoning": False,
                "messages": [{"role": "user", "content": f"{'x' * chance.randint(1, 60)} {at} {hostile * (at % 3)}"}],
            }
            for at in range(count)
        ]  # fmt: skip
        self.pairs = [Pair(str(at), f"question {at % 7}", f"good {at}", f"bad {at}") for at in range(count // 4)]
        self.requests = [self._request(chat) for chat in self.chats]
        self.drawn: dict[int, tuple[int, ...]] = {}
        self.texts, self.verdicts = self._answers(directory)

    def _request(self, chat: dict[str, Any]) -> Request:
        ids = tuple(self.tokenizer.encode_chat([(m["role"], m["content"]) for m in chat["messages"]]))
        how = Decoding(max_new_tokens=chat["max_tokens"], stop_ids=self.tokenizer.stop_ids)
        return Request(digest(list(ids)), ids, how, 0, chat["seed"])

    def _answers(self, directory: Path) -> tuple[dict[int, str], dict[str, int | None]]:
        texts: dict[int, str] = {}
        for completion in self.sampler.generate(self.requests):
            self.drawn[completion.request.seed] = completion.token_ids
            texts[completion.request.seed] = self.tokenizer.decode(written_ids(completion, self.tokenizer))
        judge = Judge(
            self.sampler, self.tokenizer, load_template(directory / "judge_template.toml"),
            Decoding(max_new_tokens=64), votes=2, thinking_budget=16, constrain_verdict=True, max_prompt_tokens=400,
        )  # fmt: skip
        return texts, {judgment.pair.id: judgment.winner for judgment in judge.judge(self.pairs)}

    def tipped(self, seed: int, text: str) -> bool:
        """Whether `text` parts from the offline one at a token where logits that differ by rounding (3e-5) draw
        either."""
        request, ids, decode = self.requests[seed], self.drawn[seed], self.tokenizer.decode
        same = next(at for at in range(len(ids), -1, -1) if text.startswith(decode(ids[:at])))
        logits = full_logits(self.config, self.params, [*request.prompt_ids, *ids[:same]])[-1]
        near = logits + 3e-5 * np.random.default_rng(0).standard_normal((1024, len(logits)))
        near = jnp.asarray(near, jnp.float32)
        seeds, name = jnp.full(1024, seed, jnp.uint32), jnp.full(1024, id_hash(request.id), jnp.uint32)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, same))(base_keys(seeds, name, jnp.zeros(1024, jnp.uint32)))
        one, none = jnp.ones(1024), jnp.zeros(1024)
        found = set(np.asarray(draw(near, keys, one * 0.6, none.astype(jnp.int32), one, none).token).tolist())
        return ids[same] in found and any(
            text.startswith(decode([*ids[:same], token])) for token in found - {ids[same]}
        )

    def speed(self, times: int) -> tuple[float, float]:
        """Tokens a second, and a CPU second, of all requests so many times over, in one call."""
        started, cpu = time.perf_counter(), time.process_time()
        tokens = sum(len(completion.token_ids) for completion in self.sampler.generate(self.requests * times))
        return tokens / (time.perf_counter() - started), tokens / (time.process_time() - cpu)


class Server:
    def __init__(self, directory: Path, store: Path, block: int):
        command = [str(Path(sys.executable).parent / "rrm"), "serve", "--model", str(directory), "--name", "tiny"]
        command += ["--batch-size", str(ROWS), "--port", "0", "--token-env", "RRM_BENCHMARK_TOKEN", *JUDGING]
        command += ["--max-body", str(BODY), "--verdicts", str(store), "--block", str(block)]
        more = {"RRM_BENCHMARK_TOKEN": TOKEN, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | more)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found.group(1)
            if line.startswith("ready"):
                break

    @property
    def rss(self) -> float:
        """MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]

    @property
    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metric(self, name: str) -> float:
        text = httpx2.get(self.url + "/metrics", headers=HEAD).text
        return float(re.search(rf"^{name} (\S+)$", text, re.M).group(1))  # type: ignore[union-attr]


class Load:
    """Clients, and what came of them: latencies of whole chats, and counts of kinds, and of wrong answers."""

    def __init__(self, server: Server, offline: Offline, abuse: bool):
        self.server, self.offline, self.abuse = server, offline, abuse
        self.latencies: list[float] = []
        self.counts: dict[str, int] = {}
        self.wrong: list[str] = []
        self.tipped: set[tuple[int, str]] = set()

    async def run(self, clients: int, until: float | None, chats: list[dict[str, Any]]) -> None:
        """Until a time, or, without one, each of `chats` once."""
        left = list(chats)
        limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx2.AsyncClient(base_url=self.server.url, headers=HEAD, limits=limits, timeout=120) as http:

            async def client(number: int) -> None:
                chance = random.Random(number)
                while (time.monotonic() < until) if until else left:
                    chat = chance.choice(chats) if until else left.pop()
                    await self._one(http, chance, chat)

            await asyncio.gather(*(client(number) for number in range(clients)))

    async def _one(self, http: httpx2.AsyncClient, chance: random.Random, chat: dict[str, Any]) -> None:
        kinds = {"chat": 60, "stream": 10, "judge": 10, "leave": 6, "slow": 3, "large": 2, "nonsense": 5, "token": 4}
        kind = chance.choices(list(kinds), list(kinds.values()))[0] if self.abuse else "chat"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        try:
            await getattr(self, f"_{kind}")(http, chance, chat)
        except httpx2.TransportError as error:
            if kind not in ("leave", "large"):
                self.wrong.append(f"{kind}: {error!r}")

    def _check(self, kind: str, answer: httpx2.Response, status: int, right: Any = True, found: Any = True) -> None:
        if answer.status_code == 429:
            self.counts["429"] = self.counts.get("429", 0) + 1
        elif answer.status_code != status or right != found:
            self.wrong.append(f"{kind}: {answer.status_code}, {found!r} for {right!r}")

    def same(self, seed: int, text: str) -> tuple[str, str]:
        """The offline text and this one; the same one twice where only rounding lies between them."""
        right = self.offline.texts[seed]
        if text == right or (seed, text) in self.tipped:
            return right, right
        if text and self.offline.tipped(seed, text):
            self.tipped.add((seed, text))
            return right, right
        return right, text

    async def _chat(self, http, chance, chat) -> None:
        started = time.perf_counter()
        answer = await http.post("/v1/chat/completions", json=chat)
        self.latencies.append(time.perf_counter() - started)
        text = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else ""
        self._check("chat", answer, 200, *self.same(chat["seed"], text))

    async def _stream(self, http, chance, chat, pause: float = 0.0) -> None:
        text = ""
        async with http.stream("POST", "/v1/chat/completions", json=chat | {"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    await asyncio.sleep(pause)
            self._check("stream", answer, 200, *self.same(chat["seed"], text))

    async def _slow(self, http, chance, chat) -> None:
        await self._stream(http, chance, chat, pause=0.2)

    async def _judge(self, http, chance, chat) -> None:
        pair = chance.choice(self.offline.pairs)
        body = {"id": pair.id, "query": pair.query, "response_1": pair.response_1, "response_2": pair.response_2}
        answer = await http.post("/judge", json=body | {"votes": 2})
        winner = answer.json().get("winner") if answer.status_code == 200 else None
        self._check("judge", answer, 200, self.offline.verdicts[pair.id], winner)

    async def _leave(self, http, chance, chat) -> None:
        body = chat | {"n": 4, "stream": chance.random() < 0.5}
        try:
            async with asyncio.timeout(chance.random() * 0.3):
                await http.post("/v1/chat/completions", json=body)
        except TimeoutError:
            pass

    async def _large(self, http, chance, chat) -> None:
        body = chat | {"messages": [{"role": "user", "content": "x" * BODY}]}
        self._check("large", await http.post("/v1/chat/completions", json=body), 413)

    async def _nonsense(self, http, chance, chat) -> None:
        data = bytes(chance.randrange(256) for _ in range(200)) if chance.random() < 0.5 else b'{"messages": 3}'
        self._check("nonsense", await http.post("/judge", content=data), 422)

    async def _token(self, http, chance, chat) -> None:
        answer = await http.post("/judge", json={}, headers={"Authorization": "Bearer wrong"})
        self._check("token", answer, 401)


async def asked(server: Server, chats: list[dict[str, Any]], clients: int) -> list[tuple[int, bytes]]:
    """Seeds and the answers' bodies, by clients that do as little as can be: they have the server's own cores."""
    left = [(chat["seed"], json.dumps(chat).encode()) for chat in reversed(chats)]
    found: list[tuple[int, bytes]] = []
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: benchmark\r\nAuthorization: {HEAD['Authorization']}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: "

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        while left:
            seed, body = left.pop()
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert answer.startswith(b"http/1.1 200"), answer
            found.append((seed, await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer).group(1)))))  # type: ignore[union-attr]
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def throughput(server: Server, offline: Offline, clients: int, times: int) -> None:
    chats = offline.chats * times
    quiet, compiled = 0, -1.0
    while quiet < 4:  # until nothing new is compiled
        asyncio.run(asked(server, offline.chats, clients))
        quiet = quiet + 1 if compiled == server.metric("rrm_programs_compiled_total") else 0
        compiled = server.metric("rrm_programs_compiled_total")
    offline.speed(times)
    wall, cpu = offline.speed(times)
    tokens, spent, started = server.metric("rrm_tokens_total"), server.cpu, time.perf_counter()
    answers = asyncio.run(asked(server, chats, clients))
    seconds, spent = time.perf_counter() - started, server.cpu - spent
    drawn = server.metric("rrm_tokens_total") - tokens
    there, there_cpu = drawn / seconds, drawn / spent
    print(f"offline: {wall:,.0f} tokens/s, {cpu:,.0f} a CPU second")
    print(f"served:  {there:,.0f} tokens/s, {there_cpu:,.0f} a CPU second, {len(chats)} chats, {clients} clients")
    print(f"share:   {there / wall:.2f} of the tokens/s, {there_cpu / cpu:.2f} of those a CPU second")
    print(f"programs compiled: {compiled:.0f} before, {server.metric('rrm_programs_compiled_total'):.0f} after")
    load = Load(server, offline, False)
    texts = [(seed, json.loads(body)["choices"][0]["message"]["content"]) for seed, body in answers]
    wrong = [seed for seed, text in texts if len(set(load.same(seed, text))) > 1]
    assert len(texts) == len(chats)
    assert not wrong, wrong[:5]


async def abused(load: Load, clients: int, seconds: float) -> list[float]:
    """The server's memory, MiB, every second."""
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(load.server.rss)
            await asyncio.sleep(1)

    watching = asyncio.ensure_future(watch())
    await load.run(clients, time.monotonic() + seconds, load.offline.chats)
    watching.cancel()
    return memory


def abuse(server: Server, offline: Offline, clients: int, minutes: float) -> None:
    load = Load(server, offline, True)
    memory = asyncio.run(abused(load, clients, 60 * minutes))
    times = sorted(load.latencies)
    print(f"requests: {sum(load.counts.values())} ({', '.join(f'{k} {n}' for k, n in sorted(load.counts.items()))})")
    print(f"wrong answers: {len(load.wrong)}; tipped by rounding: {len(load.tipped)} questions of {len(offline.chats)}")
    print(*load.wrong[:5], sep="\n")
    print(f"chat latency: p50 {times[len(times) // 2]:.2f} s, p95 {times[len(times) * 19 // 20]:.2f} s")
    parts = [memory[len(memory) * at // 10] for at in range(10)] + memory[-1:]
    print("resident memory, MiB, by tenths of the time: " + " ".join(f"{part:.0f}" for part in parts))
    deadline = time.monotonic() + 30
    while server.metric("rrm_busy_rows") + server.metric("rrm_queue_depth") and time.monotonic() < deadline:
        time.sleep(0.1)
    print(f"rows at work afterwards: {server.metric('rrm_busy_rows'):.0f}")


def killed(server: Server, directory: Path, store: Path, offline: Offline, block: int) -> None:
    async def judge_all(load: Load) -> None:
        async with httpx2.AsyncClient(base_url=load.server.url, headers=HEAD, timeout=120) as http:
            bodies = [{"query": f"fresh {at}", "response_1": "a", "response_2": "b", "votes": 2} for at in range(400)]
            asked = [asyncio.ensure_future(http.post("/judge", json=body)) for body in bodies]
            before = store.stat().st_size
            while store.stat().st_size < before + 20_000:
                await asyncio.sleep(0.01)
            load.server.process.send_signal(signal.SIGKILL)
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(judge_all(Load(server, offline, False)))
    server.process.wait()
    with VoteLog(store, write=False) as log:
        kept = len(log)
    again = Server(directory, store, block)
    load = Load(again, offline, False)

    async def same() -> None:
        async with httpx2.AsyncClient(base_url=again.url, headers=HEAD, timeout=120) as http:
            for pair in offline.pairs:
                body = {
                    "id": pair.id, "query": pair.query, "response_1": pair.response_1, "response_2": pair.response_2,
                }  # fmt: skip
                answer = await http.post("/judge", json=body | {"votes": 2})
                load._check("judge", answer, 200, offline.verdicts[pair.id], answer.json().get("winner"))

    asyncio.run(same())
    print(f"after kill -9: a whole store of {kept} votes; asked again: {len(load.wrong)} wrong answers")
    again.process.send_signal(signal.SIGTERM)
    print(f"exit code after SIGTERM: {again.process.wait(60)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--times", type=int, default=4, help="how often all questions are asked to measure throughput")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--width", type=int, default=32, help="of the model, in steps of 8; 32: some 20,000 parameters")
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
    with tempfile.TemporaryDirectory() as place:
        shape = {"hidden_size": options.width, "intermediate_size": 2 * options.width, "num_layers": options.layers}
        shape |= {"head_dim": options.width // 4}
        directory, store = write_model(Path(place) / "model", **shape), Path(place) / "votes.jsonl"
        offline, server = Offline(directory, options.questions), Server(directory, store, options.block)
        try:
            throughput(server, offline, options.clients, options.times)
            if options.minutes:
                abuse(server, offline, options.clients, options.minutes)
                killed(server, directory, store, offline, options.block)
        finally:
            server.process.kill()


if __name__ == "__main__":
    main()
