"""The server under bad clients: limits, tokens, time, those who go away, a failing engine, nonsense."""

import concurrent.futures
import json
import socket
import time

import httpx2
import pytest

from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.serving.engine import Engine
from rrm_jax.serving.metrics import Metrics
from tests.serving.common import NAME, PAIR, live, post, wait_until

pytestmark = pytest.mark.usefixtures("quick_compiles")
LONG = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 400, "seed": 1}


class Slow(Engine):
    """An engine whose blocks take a while, so that there is something to interrupt."""

    def drawn(self, *news):
        time.sleep(0.05)
        super().drawn(*news)


@pytest.fixture
def slow(home):
    engine = Slow(home.sampler(), 2)
    service = home.service(engine=engine, waiting=2)
    with live(service) as url:
        yield url, engine, service


def never_ends(home) -> dict:
    """A seed whose completion goes on to its limit."""
    ids = tuple(home.tokenizer.encode_chat([("user", "x")]))
    for seed in range(50):
        from rrm_jax.judging.store import digest

        how = Decoding(max_new_tokens=400, stop_ids=home.tokenizer.stop_ids)
        (made,) = home.sampler(1, 64).generate([Request(digest(list(ids)), ids, how, 0, seed)])
        if made.finish_reason == "length":
            return LONG | {"seed": seed}
    raise AssertionError("every completion ends early")


@pytest.fixture(scope="module")
def endless(home):
    return never_ends(home)


def refused(answer: httpx2.Response, status: int, code: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    return error["message"]


def raw(route: str, body: dict) -> bytes:
    """A request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = [f"POST {route} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*head, "", ""]).encode() + data


def test_more_than_may_wait_are_told_to_come_again(slow, endless):
    url, engine, _ = slow
    endless = endless | {"max_tokens": 60}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: post(url, "/v1/chat/completions", endless), range(12)))
    busy = [answer for answer in answers if answer.status_code == 429]
    assert len(busy) + sum(answer.status_code == 200 for answer in answers) == 12
    assert len(busy) >= 6  # four rows and two places
    assert all(answer.headers["retry-after"] == "1" for answer in busy)
    assert refused(busy[0], 429, "queue_full")
    wait_until(lambda: engine.busy == engine.queued == 0)


def test_a_client_that_goes_away_frees_its_rows(slow, endless):
    url, engine, _ = slow
    host, port = url.removeprefix("http://").split(":")
    many = endless | {"n": 4}
    for body, route in ((many, "/v1/chat/completions"), (many | {"stream": True}, "/v1/chat/completions")):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(raw(route, body))
            wait_until(lambda: engine.busy == 4)
        wait_until(lambda: engine.busy == engine.queued == 0)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(raw("/judge", PAIR | {"votes": 60}))
        wait_until(lambda: engine.busy == 4)
    wait_until(lambda: engine.busy == engine.queued == 0)


def test_an_answer_that_takes_too_long_is_given_up(home, endless):
    engine = Slow(home.sampler())
    with live(home.service(engine=engine, seconds=0.7)) as url:
        refused(post(url, "/v1/chat/completions", endless | {"n": 4}), 504, "timeout")
        wait_until(lambda: engine.busy == 0)
        refused(post(url, "/judge", PAIR | {"votes": 60}), 504, "timeout")
        wait_until(lambda: engine.busy == engine.queued == 0)
        answer = post(url, "/judge", PAIR | {"votes": 60, "stream": True})
        assert '"code": "timeout"' in answer.text
        wait_until(lambda: engine.busy == engine.queued == 0)


@pytest.mark.thorough
def test_a_slow_reader_holds_up_nobody(slow, endless):
    url, engine, _ = slow
    host, port = url.removeprefix("http://").split(":")
    body = endless | {"n": 3, "stream": True, "logprobs": True}
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(raw("/v1/chat/completions", body))
        wait_until(lambda: engine.busy == 3)
        assert post(url, "/v1/chat/completions", LONG | {"max_tokens": 8}).status_code == 200
        wait_until(lambda: engine.busy == 0)  # all was drawn, though nothing was read


def test_bodies_are_bounded(home):
    with live(home.service(body_bytes=2000)) as url:
        refused(post(url, "/judge", PAIR | {"query": "x" * 3000}), 413, "body_too_large")
        chunks = (b"x" * 500 for _ in range(8))  # of a length that is not said beforehand
        refused(httpx2.post(url + "/judge", content=chunks), 413, "body_too_large")
        assert post(url, "/judge", PAIR).status_code == 200


def test_a_token_is_asked_for_everywhere_but_at_health(home):
    with live(home.service(), token="s3cret") as url:
        right, wrong = {"Authorization": "Bearer s3cret"}, {"Authorization": "Bearer s3cre"}
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nowhere"):
            refused(httpx2.get(url + path), 401, "invalid_token")
        assert httpx2.get(url + "/health").json() == {"status": "alive"}
        refused(post(url, "/judge", PAIR, headers=wrong), 401, "invalid_token")
        assert post(url, "/judge", PAIR, headers=right).status_code == 200
        assert httpx2.get(url + "/metrics", headers=right).status_code == 200


def test_malformed_bodies_are_the_clients_fault(url):
    head = {"Content-Type": "application/json"}
    for content in (
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"query": NaN}', b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"query": "\\ud800", "response_1": "a", "response_2": "b"}', b'{"query": 1e999}',
    ):  # fmt: skip
        for route in ("/judge", "/rank", "/compare", "/get_reward", "/v1/chat/completions"):
            answer = httpx2.post(url + route, content=content, headers=head)
            assert answer.status_code in (400, 422), (route, content[:40], answer.text)
            assert answer.json()["error"]["type"] == "invalid_request_error"
    nowhere = httpx2.get(url + "/nowhere").json()["error"]
    assert nowhere["code"] == "not_served"
    assert nowhere["message"].endswith("GET /nowhere; /openapi.json lists what is served")
    assert httpx2.get(url + "/judge").status_code == 405


@pytest.mark.parametrize(
    ("content", "kind", "told"),
    [
        (b'{"query": "q', "application/json", ["the body is not JSON", "character"]),
        (b'{"query": "q", "response_1": "a", "respons_2": "b"}', "application/json", ["response_2: ", "respons_2: "]),
        (b'{"query": "q", "response_1": "a", "response_2": "b"}', "text/plain", ["Content-Type: application/json"]),
    ],
    ids=["cut off", "misspelt", "without its header"],
)
def test_a_malformed_body_is_told_what_is_wrong_with_it(url, content, kind, told):
    answer = httpx2.post(url + "/judge", content=content, headers={"Content-Type": kind})
    for part in told:
        assert part in answer.json()["error"]["message"]


def test_wrong_settings_are_400(url):
    rank = {"query": "q", "responses": ["a", "b", "c"]}
    for changes, why in (
        ({"strategy": "swiss:rounds=x"}, "not a whole number"), ({"stop": "certain"}, None), ({"rating": "x"}, None),
        ({"answers": ["a"]}, "3 candidates and 1 answers"), ({"thinking_budget": 9999}, "exceed max_new_tokens"),
    ):  # fmt: skip
        answer = post(url, "/rank", rank | changes)
        if why is not None:
            assert why in refused(answer, 400, "invalid_value")
        assert answer.status_code in (200, 400)


def test_before_the_weights_are_there_and_after_the_engine_has_failed(home, monkeypatch):
    service = home.service()
    engine, service.engine = service.engine, None
    with live(service) as url:
        assert httpx2.get(url + "/health").status_code == 200
        refused(httpx2.get(url + "/ready"), 503, "loading")
        refused(post(url, "/judge", PAIR), 503, "loading")
        service.engine = engine
        assert httpx2.get(url + "/ready").json() == {"status": "ready", "model": NAME}
        assert post(url, "/judge", PAIR).status_code == 200

        def fails(*_, **__):
            raise RuntimeError("the device has gone")

        monkeypatch.setattr(engine._call, "_dispatch", fails)
        assert "the device has gone" in refused(post(url, "/judge", PAIR | {"seed": 7}), 503, "engine_failed")
        refused(httpx2.get(url + "/ready"), 503, "engine_failed")
        refused(post(url, "/v1/chat/completions", LONG), 503, "engine_failed")


def test_metrics_count_what_happened(url):
    post(url, "/judge", PAIR)
    lines = dict(line.rsplit(" ", 1) for line in httpx2.get(url + "/metrics").text.splitlines() if line[0] != "#")
    assert float(lines['rrm_requests_total{route="/judge",status="200"}']) >= 1
    assert float(lines['rrm_request_seconds_count{route="/judge"}']) >= 1
    assert float(lines["rrm_tokens_total"]) > 0
    assert lines["rrm_rows"] == "4"
    text = Metrics().text({"share": 0.25}, {"tokens_total": 123_456_789})
    assert "rrm_tokens_total 123456789\n" in text  # a counter that is rounded stands still, and leaps
    assert "rrm_share 0.25\n" in text


def test_many_askers_of_all_kinds_get_what_each_would_get_alone(url):
    bodies = [("/judge", PAIR | {"seed": seed, "votes": 2}) for seed in range(6)]
    bodies += [("/rank", {"query": "q", "responses": ["a", "b", "c"], "seed": seed}) for seed in range(3)]
    bodies += [("/v1/chat/completions", LONG | {"seed": seed, "max_tokens": 30}) for seed in range(6)]

    def ask(asked) -> dict:
        answer = post(url, *asked).json()
        return {key: value for key, value in answer.items() if key not in ("id", "created")}

    with concurrent.futures.ThreadPoolExecutor(15) as pool:
        together = list(pool.map(ask, bodies))
    for body, answer in zip(bodies, together, strict=True):
        again = ask(body)
        if body[0] == "/v1/chat/completions":
            assert again == answer
        else:
            assert (
                again["comparisons" if "comparisons" in again else "winner"]
                == answer["comparisons" if "comparisons" in answer else "winner"]
            )


@pytest.mark.thorough
def test_no_request_that_the_schema_allows_is_a_server_error(url):
    """Requests made from the OpenAPI schema, and answers checked against it."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi import checks

    kept = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    for operation in schema.get_all_operations():
        case = operation.ok().as_strategy()

        @given(case=case)
        @settings(
            max_examples=10, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            derandomize=True,
        )  # fmt: skip
        def ask(case):
            if isinstance(case.body, dict):
                for name, most in (("n", 2), ("max_tokens", 8), ("max_completion_tokens", 8), ("votes", 2)):
                    if isinstance(case.body.get(name), int):
                        case.body[name] = min(most, case.body[name])
                if isinstance(case.body.get("responses"), list):  # each number of candidates is compiled
                    case.body["responses"] = case.body["responses"][:2]
            response = case.call(timeout=60)
            assert response.status_code < 500, (case.body, response.text)
            case.validate_response(response, checks=kept)

        ask()
