"""What is asked of a generator, and what becomes of its completions."""

import functools

import numpy as np
import pytest

from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.judging.template import load_template
from rrm_jax.judging.verdict import verdict_of_completion
from rrm_jax.quickstart import world
from rrm_jax.sampling.protocol import Completion, Decoding
from rrm_jax.training.feed import Asked
from rrm_jax.training.rollouts import Ask, collect
from rrm_jax.training.token_cache import Encode

PAIRS = [
    Pair("a", "Last digit of the sum of 12345", "5", "6", 1),
    Pair("b", "Last digit of the sum of 11111", "1", "5", 2),
]


class Fake:
    """Answers requests backwards: sample 0 names the first response, 1 the second, 2 is cut off."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.requests = tokenizer, []

    def generate(self, requests):
        self.requests += requests
        for request in reversed(requests):
            text = ["\\boxed{Assistant 1}", "\\boxed{Assistant 2}", "1"][request.sample]
            ids = self.tokenizer.encode_control(text) + ([] if request.sample == 2 else [self.tokenizer.eos_id])
            reason = "length" if request.sample == 2 else "stop"
            yield Completion(request, tuple(ids), tuple(-0.1 * at for at in range(len(ids))), reason)


@pytest.fixture(scope="module")
def encode(tmp_path_factory) -> Encode:
    directory = tmp_path_factory.mktemp("words")
    write_word_tokenizer(directory, world.WORDS)
    (directory / "template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    return Encode(load_template(directory / "template.toml"), Tokenizer.load(directory), 256, thinking=False)


@pytest.fixture(scope="module")
def tokenizer(encode) -> Tokenizer:
    return encode.tokenizer


@pytest.fixture(scope="module")
def ask(encode) -> Ask:
    decoding = Decoding(1.0, max_new_tokens=4, stop_ids=encode.tokenizer.stop_ids)
    read = functools.partial(verdict_of_completion, tokenizer=encode.tokenizer, thinking=False)
    return Ask(read, decoding, group_size=3, seed=5)


@pytest.fixture(scope="module")
def shown(encode) -> list[Asked]:
    return [Asked(pair, encode(pair).prompt_ids(turned=False), False) for pair in PAIRS]


def test_groups_are_put_together_as_completions_come(ask, shown, tokenizer):
    counted = []
    groups = collect(Fake(tokenizer), ask, shown, step=1, finished=lambda: counted.append(1))
    assert len(counted) == 6
    for pair, group in zip(PAIRS, groups, strict=True):
        assert group.asked == pair
        assert group.answers == [1, 2, None]
        assert group.finished == [True, True, False]
        # The end token stays: stopping is learnt like everything else.
        assert [ids[-1] == tokenizer.eos_id for ids in group.completion_ids] == [True, True, False]
        assert [len(x) for x in group.completion_ids] == [len(x) for x in group.sampler_logprobs]
    assert groups[0].prompt_ids != groups[1].prompt_ids


def test_a_pair_seen_again_draws_new_noise(ask, shown, tokenizer):
    """Noise belongs to (seed, id, sample): no two requests of a run have the same."""
    fake = Fake(tokenizer)
    for step in (1, 2):
        for draw in (0, 2):  # dynamic sampling goes on within the step
            collect(fake, ask, [shown[0], shown[0]], step, draw)
    addresses = [(request.seed, request.id, request.sample) for request in fake.requests]
    assert len(addresses) == len(set(addresses)) == 24
    assert {request.seed for request in fake.requests} == {5}


def test_a_generator_that_leaves_something_out_is_found_out(ask, shown, tokenizer):
    class Lazy(Fake):
        def generate(self, requests):
            yield from list(super().generate(requests))[1:]

    with pytest.raises(RuntimeError, match="left out 1 of 6"):
        collect(Lazy(tokenizer), ask, shown, step=1)


def test_logprobs_are_those_the_sampler_gave(ask, shown, tokenizer):
    (group, _) = collect(Fake(tokenizer), ask, shown, step=1)
    for logprobs in group.sampler_logprobs:
        np.testing.assert_allclose(logprobs, -0.1 * np.arange(len(logprobs)))
