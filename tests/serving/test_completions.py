"""Completions of tokens: what the sampler draws for the same prompt, and a judge at the server is the judge here."""

import pytest

from rrm_jax.data.records import Pair
from rrm_jax.errors import RrmError
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import digest
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.remote import RemoteGenerator
from tests.serving.common import NAME, post

pytestmark = pytest.mark.usefixtures("quick_compiles")
PROMPT = [20, 31, 42, 53]


def test_the_tokens_are_the_samplers(home, url):
    stop = 40
    body = {"model": NAME, "prompt": PROMPT, "seed": 5, "n": 2, "max_tokens": 30, "temperature": 0.9, "logprobs": 1}
    body |= {"return_token_ids": True, "stop_token_ids": [stop]}
    answer = post(url, "/v1/completions", body).json()
    stops = tuple(sorted({*home.tokenizer.stop_ids, stop}))
    decoding = Decoding(0.9, max_new_tokens=30, stop_ids=stops)
    for choice in answer["choices"]:
        request = Request(digest(PROMPT), tuple(PROMPT), decoding, choice["index"], 5)
        (made,) = home.sampler(1).generate([request])
        assert choice["token_ids"] == list(made.token_ids)
        assert choice["finish_reason"] == made.finish_reason
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(made.model_logprobs, abs=1e-4)  # float32
        assert choice["text"] == home.tokenizer.decode(made.token_ids[: -1 if made.finish_reason == "stop" else None])
    assert answer["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


@pytest.mark.thorough
def test_a_greedy_judge_at_the_server_gives_the_verdicts_of_the_judge_here(home, url):
    def judge(generator) -> Judge:
        how = {"thinking_budget": 8, "max_prompt_tokens": 300, "model": "tiny"}
        return Judge(generator, home.tokenizer, home.template, Decoding(0.0, max_new_tokens=40), votes=2, **how)

    pairs = [Pair(str(at), f"question {at}", f"good {at}", f"bad {at}") for at in range(12)]
    here = {j.pair.id: [vote.text for vote in j.votes] for j in judge(home.sampler()).judge(pairs)}
    there = judge(RemoteGenerator(url, NAME, home.tokenizer, concurrency=8))
    assert {j.pair.id: [vote.text for vote in j.votes] for j in there.judge(pairs)} == here
    assert len(set(map(tuple, here.values()))) > 1


def test_a_prompt_beyond_the_vocabulary_is_refused(home, url):
    answer = post(url, "/v1/completions", {"model": NAME, "prompt": [10**6]})
    assert answer.status_code == 400
    assert "outside the vocabulary" in answer.json()["error"]["message"]
    assert post(url, "/v1/completions", {"model": "other", "prompt": PROMPT}).status_code == 404
    with pytest.raises(RrmError, match="does not exist"):
        list(RemoteGenerator(url, "other", home.tokenizer).generate([Request("a", (20,), Decoding())]))
