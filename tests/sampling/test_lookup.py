"""Prompt look-up: the guesses themselves, and that they change the number of forward passes only. float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.sampling.lookup import PromptLookup, guess
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.testing import realistic_params, tiny_config
from tests.sampling.common import CONFIG, PARAMS, greedy_loop, make_requests, make_sampler, run, tokens

pytestmark = pytest.mark.usefixtures("quick_compiles")


def guesses(history, drafts=3, least=2, most=3) -> list[int]:
    padded = np.full((1, 24), 99, np.int32)
    padded[0, : len(history)] = history
    found = jax.jit(guess, static_argnums=0)(PromptLookup(drafts, least, most), padded, jnp.int32([len(history)]))
    return np.asarray(found)[0].tolist()


def test_what_followed_the_same_tokens_is_guessed():
    assert guesses([1, 2, 3, 4, 5, 9, 1, 2]) == [3, 4, 5]
    assert guesses([5, 1, 2, 7, 1, 2, 8, 0, 1, 2]) == [8, 0, 1]  # the latest of equals
    assert guesses([4, 1, 2, 7, 9, 1, 2, 8, 4, 1, 2]) == [7, 9, 1]  # the longer agreement before the later one
    assert guesses([4, 1, 2, 7, 9, 1, 2, 8, 4, 1, 2], most=2) == [8, 4, 1]
    assert guesses([1, 2, 3, 4, 1]) == [-1, -1, -1]  # one token is not enough
    assert guesses([1, 2, 3, 4, 1], least=1) == [2, 3, 4]
    assert guesses([1, 2, 3, 1, 2], drafts=4) == [3, 1, 2, -1]  # what is past the end is no guess
    assert guesses([6, 6, 6]) == [6, -1, -1]
    assert guesses([3]) == [-1, -1, -1]


def test_a_row_never_guesses_from_what_lies_beyond_its_end():
    assert guesses([99, 99]) == [-1, -1, -1]
    assert guesses([99, 99, 1, 99, 99]) == [1, 99, 99]


def quoting_world():
    """A model without attention and MLP whose greedy text runs in short cycles: it repeats itself soon."""
    config = tiny_config(max_positions=512, tied_embeddings=False)
    params = realistic_params(config)
    layers = {**params["layers"]}
    layers["attention"] = {**layers["attention"], "o_kernel": np.zeros_like(layers["attention"]["o_kernel"])}
    layers["mlp"] = {**layers["mlp"], "down_kernel": np.zeros_like(layers["mlp"]["down_kernel"])}
    return config, {**params, "layers": layers}


@pytest.mark.thorough
def test_greedy_text_is_the_same_in_fewer_passes():
    config, params = quoting_world()
    requests = make_requests(11, temperature=0.0, max_new_tokens=60)
    steps = {}

    def sampled(lookup):
        last = {}
        sampler = make_sampler(
            config=config, params=params, lookup=lookup, progress=lambda stats: last.update(stats=stats)
        )
        found = run(sampler, requests)
        steps[lookup] = last["stats"].row_steps
        return found

    plain, guessed = sampled(None), sampled(PromptLookup(4))
    assert tokens(guessed) == tokens(plain)
    assert tokens(plain)["item-0", 0] == greedy_loop(config, params, requests[0])
    assert steps[None] == 11 * 60
    assert steps[PromptLookup(4)] < steps[None] / 2


@pytest.mark.thorough
@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 0.3}, {"temperature": 1.0, "top_p": 0.6}])
def test_a_sample_is_the_same_with_and_without_guesses(how):
    rng = np.random.default_rng(0)
    # Prompts of few tokens, so that there is always something to guess from, right or wrong.
    requests = [
        Request(f"q{i}", tuple(rng.integers(0, 3, 20).tolist()), Decoding(**how, max_new_tokens=40, stop_ids=(9, 17)))
        for i in range(9)
    ]
    plain, guessed = run(make_sampler(), requests), run(make_sampler(lookup=PromptLookup(3, least=1)), requests)
    assert tokens(guessed) == tokens(plain)
    for key, completion in guessed.items():
        np.testing.assert_allclose(completion.logprobs, plain[key].logprobs, atol=1e-4)
        np.testing.assert_allclose(completion.model_logprobs, plain[key].model_logprobs, atol=1e-4)
        assert completion.finish_reason == plain[key].finish_reason


@pytest.mark.thorough
def test_the_limit_and_growth_hold_with_guesses():
    requests = make_requests(5, max_new_tokens=90, temperature=0.0)
    guessed = run(make_sampler(lookup=PromptLookup(6, least=1)), requests)
    assert {len(c.token_ids) for c in guessed.values()} == {90}
    assert tokens(guessed) == tokens(run(make_sampler(), requests))
    one = run(make_sampler(lookup=PromptLookup(6, least=1)), make_requests(5, max_new_tokens=1))
    assert {len(c.token_ids) for c in one.values()} == {1}


@pytest.mark.thorough
def test_nan_is_found_behind_a_guess_too():
    broken = {**PARAMS, "embedding": np.array(PARAMS["embedding"]), "lm_head": np.array(PARAMS["lm_head"])}
    broken["embedding"][1] = np.nan
    # The prompt makes the guess 1 plausible after "5 6"; no one draws it, since its logit is 0 and others' are larger.
    broken["lm_head"][1] = 0
    request = Request("r", (5, 6, 1, 8, 5, 6), Decoding(0.0, max_new_tokens=10))
    with pytest.raises(Exception, match="not finite"):
        run(make_sampler(params=broken, lookup=PromptLookup(3)), [request])
    clean = Request("c", (5, 6, 8, 5, 6), Decoding(0.0, max_new_tokens=10))
    found = run(make_sampler(params=broken, lookup=PromptLookup(3)), [clean])
    assert found["c", 0].token_ids == greedy_loop(CONFIG, broken, clean)


def test_impossible_settings_are_refused():
    for wrong in ({"drafts": 0}, {"least": 0}, {"least": 5, "most": 4}):
        with pytest.raises(ValueError, match="prompt look-up needs"):
            PromptLookup(**wrong)
