"""Thinking budgets at a server: the calls that are made, token by token, and what its APIs cannot do."""

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.sampling.protocol import Decoding, Request, Thinking
from rrm_jax.sampling.remote import RemoteGenerator
from tests.sampling.stub_server import QUICK, chat, requests, vllm

pytestmark = pytest.mark.usefixtures("environment")

END, CLOSING = 104, (50, 104, 51)
THOUGHT_BUDGET = Decoding(0.6, 7, 0.9, 15, (2,), 0.1, Thinking(END, 4, CLOSING, answer_tokens=5))


def draw(server, letters, decoding):
    request = Request("r", (5, 6), decoding, seed=1)
    (completion,) = RemoteGenerator(server.url, "m", letters, patience=QUICK).generate([request])
    return completion


def test_a_budget_used_up_is_closed_and_answered_greedily(serve, letters):
    answers = iter([vllm("", [11, 12, 13, 14], "length"), vllm("", [21, 2])])
    server = serve(lambda path, body: next(answers))
    completion = draw(server, letters, THOUGHT_BUDGET)
    first, second = server.bodies
    assert (first["prompt"], first["max_tokens"], first["temperature"]) == ([5, 6], 4, 0.6)
    assert second["prompt"] == [5, 6, 11, 12, 13, 14, 50, 104, 51]
    assert (second["max_tokens"], second["temperature"], second["top_p"]) == (5, 0, 1)
    assert not {"top_k", "min_p"} & set(second)
    assert completion.token_ids == (11, 12, 13, 14, 50, 104, 51, 21, 2)
    assert (completion.forced_from, completion.finish_reason, completion.text) == (4, "stop", None)
    assert len(completion.token_ids) <= 15


def test_thinking_that_ended_in_time_is_gone_on_with_as_it_was(serve, letters):
    answers = iter([vllm("", [11, 12, END, 31], "length"), vllm("", [32, 33, 2])])
    server = serve(lambda path, body: next(answers))
    completion = draw(server, letters, THOUGHT_BUDGET)
    first, second = server.bodies
    assert second["prompt"] == [5, 6, 11, 12, END, 31]
    assert (second["max_tokens"], second["temperature"], second["top_k"]) == (11, 0.6, 7)
    assert first["seed"] != second["seed"]
    assert completion.token_ids == (11, 12, END, 31, 32, 33, 2)
    assert (completion.forced_from, completion.finish_reason) == (None, "stop")


def test_a_short_completion_needs_one_call(serve, letters):
    server = serve(lambda path, body: vllm("", [11, END, 2]))
    completion = draw(server, letters, THOUGHT_BUDGET)
    assert (completion.token_ids, completion.forced_from, len(server.bodies)) == ((11, END, 2), None, 1)


def test_a_budget_on_a_server_of_text(serve, letters):
    closing = tuple(letters.encode_control("\n</think>\n\n"))
    end = letters.control_id("</think>")
    answers = iter([vllm("hmm ", finish="length"), vllm("\\boxed{Assistant 2}")])
    server = serve(lambda path, body: next(answers))
    completion = draw(server, letters, Decoding(max_new_tokens=40, thinking=Thinking(end, 4, closing, 30)))
    assert server.bodies[1]["prompt"] == [5, 6, *letters.encode_text("hmm "), *closing]
    assert completion.text == "hmm \n</think>\n\n\\boxed{Assistant 2}"
    assert letters.decode(completion.token_ids) == completion.text
    assert completion.forced_from == 4


def test_what_the_apis_cannot_do_is_refused_before_anything_is_sent(serve, letters):
    server = serve(lambda path, body: chat("x"))
    messages = (("user", "q"),)
    talks = RemoteGenerator(server.url, "m", letters, api="chat", patience=QUICK)
    with pytest.raises(RrmError, match="budget cannot be kept on the chat API"):
        list(talks.generate(requests(1, THOUGHT_BUDGET, messages=messages)))
    with pytest.raises(RrmError, match="has no messages"):
        list(talks.generate(requests(1)))
    completes = RemoteGenerator(server.url, "m", letters, patience=QUICK)
    choices = Decoding(thinking=Thinking(END, choices=((1, 2), (3, 4))))
    with pytest.raises(RrmError, match="constrained verdict"):
        list(completes.generate(requests(1, choices)))
    with pytest.raises(RrmError, match="empty prompt"):
        list(completes.generate(iter([Request("r", (), Decoding())])))
    assert server.bodies == []
