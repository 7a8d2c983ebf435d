"""The engine that many ask at once: every answer is the offline one, whatever arrives when, float32."""

import random
import threading
import time

import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.serving.engine import Engine, EngineFailed, EngineFull, Withdrawn
from tests.sampling.common import PARAMS, make_requests, make_sampler, run, tokens

pytestmark = pytest.mark.usefixtures("quick_compiles")
LONG = Request("long", (1, 2, 3), Decoding(1.0, max_new_tokens=250), seed=9)


@pytest.fixture
def engine():
    made = []

    def make(batch_size: int = 4, max_waiting: int = 256, **how) -> Engine:
        made.append(Engine(make_sampler(batch_size, **({"block": 8} | how)), max_waiting))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def test_answers_are_the_offline_ones_whatever_arrives_when(engine):
    usual = make_requests(40, stop_ids=(3, 9), seed=1)
    longer = make_requests(6, seed=2, max_new_tokens=70, top_p=0.9)
    requests = usual + longer
    shared, chance = engine(overlap=True), random.Random(0)
    found, lock = {}, threading.Lock()

    def ask(part) -> None:
        for request in part:
            time.sleep(chance.random() * 0.02)
            completion = shared.submit(request).result(60)
            with lock:
                found[request.id, request.sample, request.decoding] = completion.token_ids

    threads = [threading.Thread(target=ask, args=(requests[at::6],)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(requests)
    for part, top_p in ((usual, 1.0), (longer, 0.9)):
        assert tokens(run(make_sampler(4), part)) == {
            key[:2]: ids for key, ids in found.items() if key[2].top_p == top_p
        }


def test_streamed_tokens_are_the_completion(engine):
    heard: dict[int, list[int]] = {}
    shared, requests = engine(), make_requests(9, max_new_tokens=50)
    tickets = []
    for at, request in enumerate(requests):
        pieces = heard.setdefault(at, [])
        tickets.append(shared.submit(request, lambda ids, logprobs, pieces=pieces: pieces.append((ids, logprobs))))
    for at, ticket in enumerate(tickets):
        completion = ticket.result(60)
        assert len(heard[at]) > 1
        assert tuple(token for ids, _ in heard[at] for token in ids) == completion.token_ids
        assert tuple(value for _, values in heard[at] for value in values) == completion.model_logprobs


@pytest.mark.thorough
def test_a_cancelled_request_gives_its_row_to_another(engine):
    shared = engine(batch_size=1)
    running = shared.submit(LONG)
    waiting = [shared.submit(Request(f"w{at}", (5, at), Decoding(1.0, max_new_tokens=4))) for at in range(3)]
    wait_until(lambda: shared.busy == 1)
    assert waiting[1].cancel()
    assert running.cancel()
    for at in (0, 2):
        expected = next(iter(make_sampler(1).generate([waiting[at].request])))
        assert waiting[at].result(30).token_ids == expected.token_ids
    assert shared.tokens < 250  # of the long one only a part was drawn
    assert shared.queued == 0
    wait_until(lambda: shared.busy == 0)
    again = shared.submit(LONG).result(60)  # its row is as good as new
    assert again.token_ids == next(iter(make_sampler(1).generate([LONG]))).token_ids


def test_what_was_cancelled_ends_on_the_devices_too(engine):
    shared = engine(batch_size=4)
    long = [shared.submit(Request(f"l{at}", (1, 2, at), LONG.decoding)) for at in range(3)]
    wait_until(lambda: shared.busy == 3)
    for ticket in long:
        ticket.cancel()
    shared.submit(Request("short", (7,), Decoding(1.0, max_new_tokens=6))).result(30)
    before = shared._call.stats.row_steps
    shared.submit(Request("short", (8,), Decoding(1.0, max_new_tokens=6))).result(30)
    assert shared._call.stats.row_steps - before <= 6 + 1  # one row at work, and nobody's


def test_equal_requests_of_two_askers_are_told_apart(engine):
    shared = engine(batch_size=1)
    blocker = shared.submit(LONG)
    first, second = (shared.submit(Request("same", (4, 5), Decoding(1.0, max_new_tokens=5))) for _ in range(2))
    first.cancel()
    blocker.cancel()
    assert second.result(30).request.id == "same"
    assert first.cancelled()


def test_the_queue_is_bounded_and_patience_waits_for_room(engine):
    shared = engine(batch_size=1, max_waiting=2)
    blocker = shared.submit(LONG)
    wait_until(lambda: shared.busy == 1)
    how = Decoding(1.0, max_new_tokens=3)
    waiting = [shared.submit(Request(f"w{at}", (at,), how)) for at in range(2)]
    with pytest.raises(EngineFull, match="2 requests wait already"):
        shared.submit(Request("w2", (2,), how))
    threading.Timer(0.2, blocker.cancel).start()
    patient = shared.submit(Request("w3", (3,), how), patient=lambda: True)
    assert len(patient.result(30).token_ids) == 3
    assert all(ticket.done() for ticket in waiting)


def test_a_generator_on_the_engine_is_one_like_any_other(engine):
    shared, requests = engine(), make_requests(30)
    blocker = shared.submit(LONG)
    assert tokens(run(shared.generator(), requests)) == tokens(run(make_sampler(4), requests))
    blocker.cancel()


def test_a_generator_that_is_cancelled_or_closed_frees_its_rows(engine):
    shared = engine(batch_size=2)
    generator = shared.generator()
    threading.Timer(0.3, generator.cancel).start()
    with pytest.raises(Withdrawn):
        list(generator.generate([Request(f"l{at}", (at,), LONG.decoding) for at in range(9)]))
    wait_until(lambda: shared.busy == shared.queued == 0)
    short = [Request(f"s{at}", (at,), Decoding(1.0, max_new_tokens=2)) for at in range(3)]
    completions = shared.generator().generate([*short, *(Request(f"l{at}", (at,), LONG.decoding) for at in range(9))])
    next(completions)
    completions.close()
    wait_until(lambda: shared.busy == shared.queued == 0)


def test_what_cannot_be_served_is_refused_at_once(engine):
    with pytest.raises(RrmError, match="exceed the model's 512 positions by 1"):
        engine().submit(Request("x", (1,), Decoding(max_new_tokens=512)))


def test_a_listener_that_raises_harms_nobody(engine):
    shared = engine()

    def gone(ids, logprobs):
        raise RuntimeError("the client has gone")

    assert len(shared.submit(Request("x", (1,), Decoding(max_new_tokens=20)), gone).result(30).token_ids) == 20


def test_logits_that_are_not_finite_fail_their_own_request_alone():
    broken = {**PARAMS, "embedding": np.array(PARAMS["embedding"])}
    broken["embedding"][63] = np.nan
    shared = Engine(make_sampler(4, params=broken))
    good = shared.submit(Request("good", (1, 2), Decoding(0.0, max_new_tokens=1)))
    bad = shared.submit(Request("bad", (1, 63), Decoding(1.0, max_new_tokens=4)))
    with pytest.raises(RrmError, match="'bad'"):
        bad.result(30)
    assert len(good.result(30).token_ids) == 1
    assert shared.failure is None
    shared.close()


def test_a_failing_engine_fails_all_that_wait_and_says_why(engine, monkeypatch):
    shared = engine(batch_size=1)
    tickets = [shared.submit(Request(f"l{at}", (at,), LONG.decoding)) for at in range(3)]
    wait_until(lambda: shared.busy == 1)

    def fails(*_, **__):
        raise RuntimeError("the device has gone")

    monkeypatch.setattr(shared._call, "_dispatch", fails)
    for ticket in tickets:
        with pytest.raises(EngineFailed, match="the device has gone"):
            ticket.result(30)
    assert "the device has gone" in shared.failure
    with pytest.raises(EngineFailed, match="the device has gone"):
        shared.submit(LONG)


def test_closing_ends_the_thread_and_what_is_under_way(engine):
    shared = engine(batch_size=1)
    running = shared.submit(LONG)
    wait_until(lambda: shared.busy == 1)
    shared.close()
    assert running.cancelled()
    with pytest.raises(EngineFailed, match="shutting down"):
        shared.submit(LONG)


def test_an_idle_engine_does_nothing(engine):
    shared = engine()
    shared.submit(Request("x", (1,), Decoding(max_new_tokens=4))).result(30)
    wait_until(lambda: shared.busy == 0)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
