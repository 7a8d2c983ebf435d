"""Thinking budgets and constrained verdicts, token by token against loops over the plain forward pass. float32."""

import numpy as np
import pytest

from rrm_jax.sampling.lookup import PromptLookup
from rrm_jax.sampling.protocol import Decoding, Request, Thinking
from tests.sampling.common import CONFIG, PARAMS, full_logits, make_requests, make_sampler, model_logprobs, run, tokens

pytestmark = pytest.mark.usefixtures("quick_compiles")

END, STOP, ONE, TWO = 7, 3, 10, 18
CLOSING = (20, END, 21)
CHOICES = ((30, 31, ONE, 33, STOP), (30, 31, TWO, 34, 35, STOP))


def requests_with(count=9, *, temperature=1.0, max_new=60, stop_ids=(STOP,), sample=0, **thinking) -> list[Request]:
    how = Decoding(temperature, max_new_tokens=max_new, stop_ids=stop_ids, thinking=Thinking(**thinking))
    rng = np.random.default_rng(1)
    prompts = [tuple(rng.integers(40, 64, n).tolist()) for n in rng.integers(2, 30, count)]
    return [Request(f"r{i}", prompt, how, sample) for i, prompt in enumerate(prompts)]


def greedy_from(ids, most: int) -> list[int]:
    drawn = []
    for _ in range(most):
        drawn.append(int(np.argmax(full_logits(CONFIG, PARAMS, (*ids, *drawn))[-1])))
        if drawn[-1] == STOP:
            break
    return drawn


@pytest.mark.thorough
@pytest.mark.parametrize("lookup", [None, PromptLookup(3)], ids=["plain", "look-up"])
def test_a_used_up_budget_closes_the_thinking_and_answers_greedily(lookup):
    free = run(make_sampler(), requests_with(end_id=END))
    limited = requests_with(end_id=END, budget=12, closing=CLOSING, answer_tokens=8)
    found = run(make_sampler(lookup=lookup), limited)
    closed = 0
    for request in limited:
        completion, unlimited = found[request.id, 0], free[request.id, 0].token_ids
        thinking = unlimited[:12]
        if END in thinking or STOP in thinking:  # it ended by itself: nothing is forced, nothing is limited
            assert completion.token_ids == unlimited
            assert completion.forced_from is None
            continue
        closed += 1
        answer = greedy_from((*request.prompt_ids, *thinking, *CLOSING), 8)
        assert completion.token_ids == (*thinking, *CLOSING, *answer)
        assert completion.forced_from == 12
        assert completion.finish_reason == ("stop" if answer[-1] == STOP else "length")
        assert set(completion.logprobs[12:]) == {0.0}
        assert all(logprob < 0 for logprob in completion.logprobs[:12])
        np.testing.assert_allclose(completion.model_logprobs, model_logprobs(CONFIG, PARAMS, completion), atol=1e-4)
    assert 3 <= closed < len(limited)


def test_the_budget_counts_thinking_alone():
    # Every row ends its thinking within the budget, then goes on as long as it likes.
    forced = requests_with(end_id=END, budget=2, closing=(END,), answer_tokens=30)
    found = run(make_sampler(), forced)
    assert max(len(c.token_ids) for c in found.values()) > 20
    assert all(c.token_ids.index(END) <= 2 for c in found.values() if END in c.token_ids)


@pytest.mark.parametrize("lookup", [None, PromptLookup(3)], ids=["plain", "look-up"])
def test_only_the_two_choices_can_follow_the_thinking(lookup):
    limited = requests_with(24, end_id=END, budget=12, closing=CLOSING, choices=CHOICES)
    found = run(make_sampler(lookup=lookup), limited)
    ended_by_itself, verdicts = 0, set()
    for request in limited:
        completion = found[request.id, 0]
        ids = completion.token_ids
        if STOP in ids[:12]:  # it stopped while it was thinking: there is no verdict
            assert completion.choice_probabilities is None
            assert completion.finish_reason == "stop"
            continue
        end = ids.index(END) + 1
        ended_by_itself += end <= 12
        # Thinking that ends by itself is followed by a choice; the closing holds more than the end.
        verdict = ids[end:] if end <= 12 else ids[12 + len(CLOSING) :]
        verdicts.add(verdict)
        assert completion.forced_from == (end if end <= 12 else 12)
        assert completion.finish_reason == "stop"
        place = len(ids) - len(verdict) + 2
        logits = full_logits(CONFIG, PARAMS, request.prompt_ids + ids[:place])[-1]
        one = 1 / (1 + np.exp(logits[TWO] - logits[ONE]))
        assert verdict == CHOICES[int(one < 0.5)]
        np.testing.assert_allclose(completion.choice_probabilities, (one, 1 - one), atol=1e-5)
        np.testing.assert_allclose(completion.model_logprobs, model_logprobs(CONFIG, PARAMS, completion), atol=1e-4)
    assert ended_by_itself > 0
    assert verdicts == set(CHOICES)


def test_a_prompt_that_ends_the_thinking_is_followed_by_a_choice_at_once():
    direct = requests_with(end_id=None, choices=CHOICES)
    found = run(make_sampler(), direct)
    for request in direct:
        completion = found[request.id, 0]
        assert completion.token_ids in CHOICES
        assert completion.forced_from == 0
        logits = full_logits(CONFIG, PARAMS, (*request.prompt_ids, 30, 31))[-1]
        assert completion.choice_probabilities[0] == pytest.approx(
            1 / (1 + np.exp(logits[TWO] - logits[ONE])), abs=1e-5
        )


def test_max_new_tokens_bounds_everything():
    limited = requests_with(end_id=END, budget=12, closing=CLOSING, answer_tokens=40, max_new=18)
    assert max(len(c.token_ids) for c in run(make_sampler(), limited).values()) == 18


def test_rows_with_and_without_thinking_live_together():
    limited = requests_with(end_id=END, budget=12, closing=CLOSING, choices=CHOICES, sample=4)
    others = make_requests(9)
    apart = {**run(make_sampler(), limited), **run(make_sampler(), others)}
    mixed = [request for pair in zip(limited, others, strict=True) for request in pair]
    assert tokens(run(make_sampler(batch_size=4), mixed)) == tokens(apart)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"end_id": END, "budget": 0, "closing": (END,)}, "budget must be ≥ 1"),
        ({"end_id": END, "budget": -3, "closing": (END,)}, "budget must be ≥ 1"),
        ({"end_id": END, "budget": 9, "closing": (1,)}, "closing that holds it"),
        ({"end_id": None, "budget": 9, "closing": (1,)}, "needs an end_id"),
        ({"end_id": END, "answer_tokens": 0}, "answer_tokens"),
        ({"end_id": END, "choices": ((1,),)}, "none or two"),
        ({"end_id": END, "choices": ((1,), (1, 2))}, "beginning of the other"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Thinking(**wrong)


def test_a_budget_that_leaves_no_room_for_an_answer_is_refused():
    with pytest.raises(ValueError, match=r"budget of 20 tokens and at least 9 .* exceed max_new_tokens"):
        Decoding(max_new_tokens=28, thinking=Thinking(END, 20, CLOSING, choices=CHOICES))
