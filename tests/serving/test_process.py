"""`rrm serve` as a process: from its command line to its end, in order or not."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.errors import RrmError
from rrm_jax.judging.store import VoteLog
from tests.serving.common import PAIR, World, post

ROOT = Path(__file__).parent.parent.parent
JUDGING = ("--thinking-budget", "8", "--constrain-verdict", "--max-new-tokens", "40", "--max-prompt-tokens", "300")


@pytest.fixture
def start(home: World, tmp_path: Path):
    """`start(*options)` → (process, address) of a server that is ready."""
    running = []

    def begin(*options: str, **environment: str) -> tuple[subprocess.Popen, str]:
        command = [str(Path(sys.executable).parent / "rrm"), "serve", "--model", str(home.directory), "--port", "0"]
        command += ["--batch-size", "4", *JUDGING, *options]
        more = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "RRM_COMPILATION_CACHE": "off"} | environment
        more |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | more)
        running.append(process)
        address, said = "", ""
        for line in process.stderr:
            said += line
            if found := re.search(r"listening on (http://\S+)", line):
                address = found.group(1)
            if line.startswith("ready"):
                return process, address
        raise AssertionError(said)

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.thorough
def test_told_to_end_it_finishes_what_runs_and_accepts_no_more(start):
    process, url = start("--grace", "60")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(post, url, "/judge", PAIR | {"votes": 64, "seed": 1})
        while "busy_rows 0" in (text := httpx2.get(url + "/metrics").text) or "busy_rows" not in text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        answer = running.result(120)
    assert answer.status_code == 200
    assert len(answer.json()["votes"]) == 64
    assert process.wait(30) == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url + "/health")


@pytest.mark.thorough
def test_what_does_not_end_in_time_is_cut_off(start):
    process, url = start("--grace", "1")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        body = {"query": "q", "responses": [f"response {at}" for at in range(60)], "votes": 8}
        running = pool.submit(post, url, "/rank", body)
        while "busy_rows 0" in (text := httpx2.get(url + "/metrics").text) or "busy_rows" not in text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert running.result(60).json()["error"]["code"] == "shutting_down"


@pytest.mark.thorough
def test_a_killed_server_leaves_a_whole_store_and_answers_from_it(start, tmp_path):
    store = tmp_path / "votes.jsonl"
    process, url = start("--verdicts", str(store), "--token-env", "RRM_TOKEN", RRM_TOKEN="s3cret")
    head = {"Authorization": "Bearer s3cret"}
    first = post(url, "/judge", PAIR | {"votes": 3}, headers=head).json()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        body = {"query": "q", "responses": [f"response {at}" for at in range(40)]}
        running = pool.submit(post, url, "/rank", body, headers=head)
        while store.stat().st_size < 20_000:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        with pytest.raises(httpx2.TransportError):
            running.result(60)
    with VoteLog(store, write=False) as log:
        kept = len(log)
    assert kept > 10
    process, url = start("--verdicts", str(store))
    assert post(url, "/judge", PAIR | {"votes": 3}).json() == first
    text = httpx2.get(url + "/metrics").text
    assert "rrm_tokens_total 0" in text  # answered from the store
    assert store.read_bytes().endswith(b"\n")
    assert all(json.loads(line) for line in store.read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--token-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE: that environment variable is not set"),
        (["--thinking-budget", "60"], "exceed max_new_tokens"),
    ],
)
def test_wrong_options_end_it_before_it_listens(home, options, why):
    arguments = ["serve", "--model", str(home.directory), *JUDGING, *options]
    result = CliRunner().invoke(_app, arguments)
    assert isinstance(result.exception, RrmError)
    assert why in str(result.exception)


def test_a_model_that_cannot_be_loaded_ends_it(home, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in home.directory.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    command = [str(Path(sys.executable).parent / "rrm"), "serve", "--model", str(broken), "--port", "0", *JUDGING]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "error: " in ended.stderr
