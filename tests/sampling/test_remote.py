"""A server as a generator: what is sent, what is made of the answers, and that an outage is never a result."""

import asyncio
import email.utils
import itertools
import socket
import threading
import time

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.sampling.endpoint import Patience, base_url
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.remote import RemoteGenerator
from tests.sampling.stub_server import KEY, QUICK, chat, requests, vllm

pytestmark = pytest.mark.usefixtures("environment")


def consume(generator, asked, seconds=0.0):
    """The ids that came, with `seconds` spent on each, and the error that ended them."""
    got = []
    try:
        for completion in generator.generate(asked):
            got.append(completion.request.id)
            time.sleep(seconds)
    except RrmError as error:
        return got, str(error)
    return got, ""


def by_id(completions):
    return {completion.request.id: completion for completion in completions}


def test_token_ids_of_the_server_are_the_completion(serve, letters):
    server = serve(lambda path, body: vllm("ab", [7, 8, body["prompt"][-1], 2], logprobs=[-0.5, -1, 0, -2]))
    how = Decoding(0.7, 5, 0.9, 20, stop_ids=(2, 9), min_p=0.01)
    generator = RemoteGenerator(server.url + "/", "judge", letters, logprobs=True, patience=QUICK)
    done = by_id(generator.generate(requests(6, how)))
    assert {name: c.token_ids for name, c in done.items()} == {f"r{at}": (7, 8, at, 2) for at in range(6)}
    one = done["r3"]
    assert (one.finish_reason, one.text, one.logprobs) == ("stop", None, ())
    assert (one.model_logprobs, one.forced_from) == ((-0.5, -1.0, 0.0, -2.0), None)
    assert set(server.paths) == {"/v1/completions"}
    assert set(server.keys) == {f"Bearer {KEY}"}
    sent = next(body for body in server.bodies if body["prompt"][-1] == 3)
    seeds = {body.pop("seed") for body in server.bodies}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sent == {
        "model": "judge", "prompt": [5, 6, 3], "max_tokens": 20, "temperature": 0.7, "top_p": 0.9, "top_k": 5,
        "min_p": 0.01, "stream": False, "logprobs": 1, "stop_token_ids": [2, 9], "return_token_ids": True,
        "skip_special_tokens": False,
    }  # fmt: skip


def test_a_strict_server_gets_only_what_it_knows(serve, letters):
    server = serve(lambda path, body: vllm("ab"))
    generator = RemoteGenerator(server.url, "judge", letters, extensions=False, patience=QUICK)
    list(generator.generate(requests(1)))
    assert set(server.bodies[0]) == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream"}
    for decoding in (Decoding(top_k=3), Decoding(min_p=0.1)):
        with pytest.raises(RrmError, match="extensions of the API"):
            list(generator.generate(requests(1, decoding)))


def test_seeds_belong_to_requests(serve, letters):
    def seeds(seed, sample):
        server = serve(lambda path, body: vllm("ab"))
        request = Request("r", (5,), Decoding(max_new_tokens=3), sample, seed)
        list(RemoteGenerator(server.url, "m", letters, patience=QUICK).generate([request]))
        return server.bodies[0]["seed"]

    assert seeds(0, 0) == seeds(0, 0)
    assert len({seeds(0, 0), seeds(0, 1), seeds(1, 0)}) == 3


def test_text_without_ids_is_kept_and_encoded(serve, letters):
    server = serve(lambda path, body: vllm("so</think>\\boxed{Assistant 1}<|user|></think>", finish="length"))
    (completion,) = RemoteGenerator(server.url, "m", letters, patience=QUICK).generate(requests(1))
    assert completion.text == "so</think>\\boxed{Assistant 1}<|user|></think>"
    assert completion.finish_reason == "length"
    assert letters.decode(completion.token_ids) == completion.text
    control = [token for token in completion.token_ids if token >= letters.encode_control("<|end|>")[0]]
    assert control == [letters.control_id("</think>")]  # markers that the text merely spells stay text


CHATS = {
    "reasoning_content": (chat("\\boxed{Assistant 1}", reasoning_content="hm"), "hm</think>\\boxed{Assistant 1}"),
    "reasoning": (chat("A", reasoning="hm"), "hm</think>A"),
    "inside": (chat("hm</think>A"), "hm</think>A"),
    "cut in its thinking": (chat(None, "length", reasoning_content="hm"), "hm"),
    "quotes": (
        chat(None, "length", reasoning_content="it says </think>\\boxed{Assistant 1}"),
        "it says < /think>\\boxed{Assistant 1}",
    ),
    "refusal": (chat(None, refusal="I won't"), "I won't"),
    "empty": (chat("", "length"), ""),
}


@pytest.mark.parametrize("kind", CHATS)
def test_chat(serve, letters, kind):
    answer, text = CHATS[kind]
    server = serve(lambda path, body: answer)
    generator = RemoteGenerator(server.url + "/v1/", "m", letters, api="chat", patience=QUICK)
    messages = (("system", "s"), ("user", "q {x}"))
    (completion,) = generator.generate(requests(1, Decoding(0.5, max_new_tokens=9, stop_ids=(2,)), messages=messages))
    assert completion.text == text
    assert completion.finish_reason == answer["choices"][0]["finish_reason"]
    assert server.paths == ["/v1/chat/completions"]
    assert set(server.bodies[0]) == {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "stream"}
    assert server.bodies[0]["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "q {x}"}]


def test_results_stream_in_the_order_they_finish_and_requests_are_taken_lazily(serve, letters):
    taken, release = [], threading.Event()

    def answer(path, body):
        if body["prompt"][-1] == 0:
            release.wait(10)
        return vllm("x", [body["prompt"][-1]])

    server = serve(answer)
    endless = (taken.append(at) or Request(f"r{at}", (5, at), Decoding(max_new_tokens=2)) for at in itertools.count())
    stream = RemoteGenerator(server.url, "m", letters, concurrency=3, patience=QUICK).generate(endless)
    assert taken == []
    first = [next(stream).token_ids[0] for _ in range(10)]
    assert 0 not in first
    assert len(taken) <= 10 + 3
    release.set()
    assert 0 in {next(stream).token_ids[0] for _ in range(20)}
    stream.close()
    assert not any(thread.name == "remote generator" for thread in threading.enumerate())
    assert server.most_open <= 3


def test_so_many_are_open_and_no_more(serve, letters):
    together = threading.Barrier(3)  # nobody is answered until three are there

    def answer(path, body):
        together.wait(10)
        return vllm("x")

    server = serve(answer)
    done = list(RemoteGenerator(server.url, "m", letters, concurrency=3, patience=QUICK).generate(requests(12)))
    assert len(done) == 12
    assert server.most_open == 3


def test_it_works_where_a_loop_is_running(serve, letters):
    server = serve(lambda path, body: vllm("x"))

    async def notebook():
        return list(RemoteGenerator(server.url, "m", letters, patience=QUICK).generate(requests(3)))

    assert len(asyncio.run(notebook())) == 3
    assert not any(thread.name == "remote generator" for thread in threading.enumerate())


GARBAGE = [
    (200, {}, b"<html>try later</html>"),
    (200, {}, b'{"choices": []}'),
    (200, {}, b'{"error": {"message": "upstream is down", "code": 502}}'),
    (200, {}, b'{"choices": [{"text": 3, "finish_reason": "stop"}]}'),
    (200, {}, b'{"choices": [{"text": "x", "token_ids": [1, -2], "finish_reason": "stop"}]}'),
    (200, {}, b'{"choices": [{"text": "x", "token_ids": [1, true], "finish_reason": "stop"}]}'),
    (200, {}, b'{"choices": [{"text": "x", "finish_reason": null}]}'),
    (200, {}, b'{"choices": [{"text": "x", "finish_reason": "abort"}]}'),
    (200, {}, b'{"choices": [{"text": "\\ud800", "finish_reason": "stop"}]}'),
    (200, {}, b"[" * 100_000),
    (200, {"Content-Encoding": "gzip"}, b"not gzip"),
    (200, {}, b" " * 5000),  # above this test's limit
    (500, {}, b"oh"),
    (503, {"Retry-After": "soon"}, b""),
    (408, {}, b""),
    (409, {}, b""),
    (429, {}, b'{"error": {"message": "slow down"}}'),
]


@pytest.mark.parametrize("trouble", GARBAGE, ids=str)
def test_a_bad_answer_is_asked_for_again_and_never_a_result(serve, letters, trouble):
    answers = itertools.chain([trouble, trouble], itertools.repeat(vllm("x", [4])))
    server = serve(lambda path, body: next(answers))
    patience = Patience(timeout=10, retries=2, pause=0.01, answer_bytes=4000)
    (completion,) = RemoteGenerator(server.url, "m", letters, patience=patience).generate(requests(1))
    assert completion.token_ids == (4,)
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]

    server = serve(lambda path, body: trouble)
    said = r"out of service: (HTTP|an answer|an error as an answer: upstream is|DecodingError).*\(3 tries.*kept"
    with pytest.raises(RrmError, match=said):
        list(RemoteGenerator(server.url, "m", letters, patience=patience).generate(requests(1)))


def test_retry_after_is_honoured(serve, letters):
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    answers = iter([(429, {"Retry-After": "0.4"}, b""), vllm("x"), (429, {"Retry-After": date}, b"busy")])
    server = serve(lambda path, body: next(answers))
    generator = RemoteGenerator(server.url, "m", letters, patience=QUICK)
    assert len(list(generator.generate(requests(1)))) == 1
    assert server.times[1] - server.times[0] >= 0.4
    with pytest.raises(RrmError, match=r"asks to wait 3[56]\d\d s: HTTP 429: busy \(1 tries"):
        list(generator.generate(requests(1)))


def test_pauses_grow_and_belong_to_the_request():
    patience = Patience(pause=0.5)
    for attempt, whole in enumerate([0.5, 1, 2, 4, 8, 16, 32, 60, 60]):
        pauses = [patience.seconds(attempt, f"r{at}") for at in range(200)]
        assert whole / 2 <= min(pauses) < whole * 0.6
        assert whole * 0.9 < max(pauses) <= whole
        assert pauses == [patience.seconds(attempt, f"r{at}") for at in range(200)]
    assert patience.seconds(10_000, "r") <= 60


def test_a_server_that_hangs_or_is_not_there(serve, letters):
    release = threading.Event()
    server = serve(lambda path, body: release.wait(10) and vllm("x"))
    hanging = RemoteGenerator(server.url, "m", letters, patience=Patience(timeout=0.2, retries=1, pause=0.01))
    started = time.monotonic()
    with pytest.raises(RrmError, match=r"no answer within 0\.2 s \(2 tries"):
        list(hanging.generate(requests(1)))
    release.set()
    assert time.monotonic() - started < 5
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gone = RemoteGenerator(f"http://127.0.0.1:{port}", "m", letters, patience=Patience(retries=1, pause=0.01))
    with pytest.raises(RrmError, match=r"out of service: ConnectError"):
        list(gone.generate(requests(1)))


def test_a_drip_of_bytes_does_not_hold_a_request_for_ever(letters):
    """Each read succeeds well within the time-out; the answer as a whole does not."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            try:
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.02)
            except OSError:
                pass

    threading.Thread(target=drip, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    generator = RemoteGenerator(url, "m", letters, patience=Patience(timeout=0.3, retries=0))
    with listener, pytest.raises(RrmError, match=r"no answer within 0\.3 s"):
        list(generator.generate(requests(1)))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 308])
def test_what_cannot_be_helped_is_said_at_once(serve, letters, status):
    words = f'{{"error": {{"message": "Incorrect API key provided:\\u001b[31m {KEY}. {"x" * 5000}"}}}}'.encode()
    server = serve(lambda path, body: (status, {"Location": "https://elsewhere/v1"} if status == 308 else {}, words))
    with pytest.raises(RrmError, match=rf"refuses the request: HTTP {status}.*Incorrect API key provided") as refused:
        list(RemoteGenerator(server.url, "m", letters, patience=QUICK).generate(requests(1)))
    said = str(refused.value)
    assert KEY not in said
    assert "[API key]" in said
    assert "\x1b" not in said
    assert len(said) < 700
    assert len(server.bodies) == 1


def test_what_was_finished_is_yielded_before_an_error(serve, letters):
    """One request is refused while others of the same batch are done; none of theirs is lost."""
    barrier = threading.Barrier(4)

    def answer(path, body):
        barrier.wait(10)
        if body["prompt"][-1] == 2:
            time.sleep(0.2)
            return 400, {}, b"bad"
        return vllm("x", [body["prompt"][-1]])

    server = serve(answer)
    generator = RemoteGenerator(server.url, "m", letters, concurrency=4, patience=QUICK)
    got, refused = consume(generator, iter(requests(4)), seconds=0.1)
    assert "HTTP 400: bad" in refused
    assert sorted(got) == ["r0", "r1", "r3"]


def test_a_completion_that_the_server_ended_is_named_after_the_others(serve, letters):
    server = serve(lambda path, body: vllm("x", finish="content_filter" if body["prompt"][-1] == 1 else "stop"))
    got, refused = consume(RemoteGenerator(server.url, "m", letters, patience=QUICK), requests(5))
    assert "did not finish 1 completion" in refused
    assert "'r1' (sample 1): finish_reason 'content_filter'" in refused
    assert sorted(got) == ["r0", "r2", "r3", "r4"]
    assert len(server.bodies) == 5


def test_progress_says_what_went_wrong(serve, letters):
    answers = itertools.chain([(500, {}, b"cold start")], itertools.repeat(vllm("x", [1, 2])))
    server = serve(lambda path, body: next(answers))
    seen = []
    generator = RemoteGenerator(
        server.url, "m", letters, patience=QUICK, progress=lambda stats: seen.append(str(stats))
    )
    list(generator.generate(requests(3)))
    assert seen[-1].startswith("3 completions, 6 tokens, ")
    assert "0 open, 1 tries repeated (last: HTTP 500: cold start)" in seen[-1]


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1", "https://h/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/api/v1/chat/completions", "https://h/api/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        (" http://[::1]:80/x ", "http://[::1]:80/x/v1"),
    ],
)
def test_addresses(given, address):
    assert base_url(given) == address


@pytest.mark.parametrize("given", ["localhost:8000", "ftp://h", "http://", "http://h:99999", "http://h:x", ""])
def test_what_is_no_address(given):
    with pytest.raises(RrmError, match="is not the address of a server"):
        base_url(given)


@pytest.mark.parametrize("given", ["http://me:pass-word@h/v1", "http://h/v1?key=pass-word", "http://h#pass-word"])
def test_an_address_holds_no_secret(given):
    with pytest.raises(RrmError, match="no user, password, query or fragment") as refused:
        base_url(given)
    assert "pass-word" not in str(refused.value)


def test_keys(letters, monkeypatch, serve):
    server = serve(lambda path, body: vllm("x"))
    monkeypatch.delenv("OPENAI_API_KEY")
    list(RemoteGenerator(server.url, "m", letters, patience=QUICK).generate(requests(1)))
    monkeypatch.setenv("MINE", " other-key\n")
    list(RemoteGenerator(server.url, "m", letters, key_variable="MINE", patience=QUICK).generate(requests(1)))
    assert server.keys == [None, "Bearer other-key"]
    with pytest.raises(RrmError, match="environment variable NOT_SET holds no API key"):
        RemoteGenerator(server.url, "m", letters, key_variable="NOT_SET")
    monkeypatch.setenv("MINE", "kéy-with-accent")
    with pytest.raises(RrmError, match="API key in MINE holds characters") as refused:
        RemoteGenerator(server.url, "m", letters, key_variable="MINE")
    assert "accent" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong", [{"api": "responses"}, {"concurrency": 0}, {"model": ""}, {"logprobs": True, "api": "chat"}]
)
def test_wrong_arguments(letters, wrong):
    with pytest.raises(RrmError):
        RemoteGenerator("http://h", **{"model": "m", "tokenizer": letters, **wrong})
