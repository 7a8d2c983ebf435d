"""What the sampling tests share: a small random model where every part matters, requests, and references, float32."""

import jax
import numpy as np

from rrm_jax.models import decoder
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options
from rrm_jax.sampling.protocol import Completion, Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.testing import realistic_params, tiny_config

CONFIG = tiny_config(max_positions=512)
PARAMS = realistic_params(CONFIG)
LONGEST = 192


def make_sampler(batch_size: int = 8, config: DecoderConfig = CONFIG, params=None, **how) -> Sampler:
    how = {"block": 32} | how
    return Sampler(config, PARAMS if params is None else params, batch_size=batch_size, **how)


def make_requests(count: int, seed: int = 0, vocab: int = CONFIG.vocab_size, **decoding) -> list[Request]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, count)
    how = Decoding(**{"temperature": 1.0, "max_new_tokens": 24} | decoding)
    return [
        Request(f"item-{i}", tuple(rng.integers(0, vocab, n).tolist()), how, sample=i % 3, seed=5)
        for i, n in enumerate(lengths)
    ]


def run(sampler: Sampler, requests) -> dict[tuple[str, int], Completion]:
    completions = list(sampler.generate(requests))
    assert len(completions) == len(requests)
    return {(c.request.id, c.request.sample): c for c in completions}


def tokens(completions: dict) -> dict:
    return {key: completion.token_ids for key, completion in completions.items()}


_forward = jax.jit(decoder.forward, static_argnums=(0, 5))


def full_logits(config, params, ids) -> np.ndarray:
    """Logits [T, V] of one sequence by the forward pass that training uses: no cache, no other row."""
    longest = max(LONGEST, -(-len(ids) // 64) * 64)
    padded = np.zeros((1, longest), np.int32)
    padded[0, : len(ids)] = ids
    segments = (np.arange(longest) < len(ids)).astype(np.int32)[None]
    hidden, _ = _forward(config, params, padded, np.arange(longest, dtype=np.int32)[None], segments, Options())
    return np.asarray(decoder.unembed(config, params, hidden))[0, : len(ids)]


def greedy_loop(config, params, request: Request) -> tuple[int, ...]:
    ids = list(request.prompt_ids)
    for _ in range(request.decoding.max_new_tokens):
        ids.append(int(np.argmax(full_logits(config, params, ids)[-1])))
        if ids[-1] in request.decoding.stop_ids:
            break
    return tuple(ids[len(request.prompt_ids) :])


def is_greedy(config, params, completion) -> bool:
    """Whether every token is the most probable one after those before it, by one teacher-forced pass."""
    return completion_logits(config, params, completion).argmax(-1).tolist() == list(completion.token_ids)


def completion_logits(config, params, completion) -> np.ndarray:
    """Float64 logits [T, V] that each token of a completion was drawn from, by a teacher-forced pass."""
    prompt, drawn = completion.request.prompt_ids, completion.token_ids
    return full_logits(config, params, prompt + drawn)[len(prompt) - 1 : -1].astype(np.float64)


def expected_logprobs(config, params, completion) -> np.ndarray:
    """Of the completion's tokens under the tempered, truncated distribution, by sorting, float64."""
    drawn, how = completion.token_ids, completion.request.decoding
    logits = completion_logits(config, params, completion) / how.temperature
    order = np.argsort(-logits, axis=-1)
    weights = np.take_along_axis(np.exp(logits - logits.max(-1, keepdims=True)), order, axis=-1)
    if how.top_k:
        weights[:, how.top_k :] = 0
    weights /= weights.sum(-1, keepdims=True)
    weights[np.cumsum(weights, axis=-1) - weights >= how.top_p] = 0
    weights[weights < how.min_p * weights[:, :1]] = 0
    weights /= weights.sum(-1, keepdims=True)
    places = np.argsort(order, axis=-1)[np.arange(len(drawn)), drawn]
    return np.log(weights[np.arange(len(drawn)), places])


def model_logprobs(config, params, completion) -> np.ndarray:
    logits = completion_logits(config, params, completion)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits[np.arange(len(completion.token_ids)), completion.token_ids]
