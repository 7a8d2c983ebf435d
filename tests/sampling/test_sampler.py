"""The sampler against loops over the plain forward pass, float32, on random weights where every part matters."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rrm_jax.errors import RrmError
from rrm_jax.models import decoder
from rrm_jax.models.config import Rope
from rrm_jax.models.decoder import Options
from rrm_jax.models.params import stack, unstack
from rrm_jax.parallel.mesh import partition_spec
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.testing import realistic_params, tiny_config
from tests.sampling import two_processes
from tests.sampling.common import (
    CONFIG,
    LONGEST,
    PARAMS,
    expected_logprobs,
    full_logits,
    greedy_loop,
    make_requests,
    make_sampler,
    model_logprobs,
    run,
    tokens,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")


def test_greedy_is_the_loop_over_the_full_forward_pass():
    requests = make_requests(11, temperature=0.0, max_new_tokens=40, stop_ids=(3, 9, 20, 31, 40))
    found = run(make_sampler(), requests)
    for request in requests:
        completion = found[request.id, request.sample]
        assert completion.token_ids == greedy_loop(CONFIG, PARAMS, request)
        assert set(completion.logprobs) == {0.0}
    assert {c.finish_reason for c in found.values()} == {"stop", "length"}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_logprobs_are_of_the_distribution_drawn_from_and_of_the_model(how):
    found = run(make_sampler(), make_requests(8, **how))
    for completion in found.values():
        expected = expected_logprobs(CONFIG, PARAMS, completion)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        np.testing.assert_allclose(completion.model_logprobs, model_logprobs(CONFIG, PARAMS, completion), atol=1e-4)


def test_bfloat16_logprobs_are_near_those_of_a_teacher_forced_pass():
    found = run(make_sampler(options=Options(dtype=jnp.bfloat16)), make_requests(8, seed=3))
    gaps = [
        np.abs(np.array(c.model_logprobs) - model_logprobs(CONFIG, PARAMS, c)) for c in found.values()
    ]  # the reference is float32: this is the error of bfloat16 itself, on logits of standard deviation 4
    assert np.mean(np.concatenate(gaps)) < 0.1
    assert np.max(np.concatenate(gaps)) < 0.6


def test_first_tokens_are_distributed_as_the_model_says():
    requests = [Request("x", (4, 8, 15), Decoding(1.0, max_new_tokens=1), sample=i) for i in range(3000)]
    found = run(make_sampler(batch_size=512), requests)
    logits = full_logits(CONFIG, PARAMS, (4, 8, 15))[-1].astype(np.float64)
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    counts = np.bincount([c.token_ids[0] for c in found.values()], minlength=CONFIG.vocab_size)
    # Standardised counts of a right sampler stay within 5 standard deviations.
    common = expected * 3000 > 5
    deviation = (counts - 3000 * expected) / np.sqrt(3000 * expected * (1 - expected))
    assert common.sum() > 10
    assert np.abs(deviation[common]).max() < 5


def test_noise_is_addressed_by_id_sample_seed_and_position():
    base = Request("a", (1, 2, 3), Decoding(1.5, max_new_tokens=30))
    others = [
        Request("b", (1, 2, 3), base.decoding),
        Request("a", (1, 2, 3), base.decoding, sample=1),
        Request("a", (1, 2, 3), base.decoding, seed=1),
    ]
    sampler = make_sampler()
    first = [c.token_ids for c in sampler.generate([base, *others])]
    assert len(set(first)) == 4
    assert all(len(set(ids)) > 5 for ids in first)  # positions do not repeat one noise
    again = {c.request: c.token_ids for c in sampler.generate([*others[::-1], base])}
    assert [again[r] for r in (base, *others)] == first


def test_noise_is_fresh_at_every_position():
    # With an output matrix of zeros every token is equally likely: what is left is the noise itself.
    flat = {**PARAMS, "lm_head": np.zeros_like(PARAMS["lm_head"])}
    sampler = make_sampler(params=flat)
    found = run(sampler, make_requests(40, max_new_tokens=64))
    ids = np.array([c.token_ids for c in found.values()])
    # 64 draws of 64 show 40.6 different ones, with a standard deviation of 2.4.
    assert all(28 <= len(set(row)) <= 53 for row in ids)
    # And the 40 rows agree at a position as seldom as chance has it: 29.9 different ones of 64.
    assert all(18 <= len(set(column)) <= 40 for column in ids.T)
    counts = np.bincount(ids.ravel(), minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_allclose(found["item-0", 0].logprobs, -np.log(64), atol=1e-5)


def test_a_sample_does_not_depend_on_its_company():
    requests = make_requests(21, max_new_tokens=50)
    full = run(make_sampler(batch_size=8), requests)
    shuffled = run(make_sampler(batch_size=8), requests[::-1])
    # Another order puts a request in another slot and beside others. The float sums are the same ones.
    assert tokens(full) == tokens(shuffled)
    for batch_size in (1, 32):  # other shapes: float sums may run in another order
        other = run(make_sampler(batch_size=batch_size), requests)
        assert tokens(other) == tokens(full)
        for key, completion in other.items():
            np.testing.assert_allclose(completion.logprobs, full[key].logprobs, atol=1e-4)


def test_the_stop_token_is_kept_and_max_new_tokens_is_exact():
    free = run(make_sampler(), make_requests(8, max_new_tokens=33))
    assert all(len(c.token_ids) == len(c.logprobs) == 33 for c in free.values())
    assert all(c.finish_reason == "length" for c in free.values())
    stop = free["item-0", 0].token_ids[7]
    stopped = run(make_sampler(), make_requests(8, max_new_tokens=33, stop_ids=(63, 62, stop)))
    for key, completion in stopped.items():
        ids = free[key].token_ids
        ends = [at for at, token in enumerate(ids) if token in (63, 62, stop)]
        expected = ids[: ends[0] + 1] if ends else ids
        assert completion.token_ids == expected
        assert completion.finish_reason == ("stop" if ends else "length")
    assert stopped["item-0", 0].token_ids[-1] == stop


@pytest.mark.parametrize("prompt", [(0,), (0, 0, 0), (5, 0, 0), (0, 5), (5,), (0, 7, 0, 0, 7, 0)])
def test_no_token_id_is_taken_for_padding(prompt):
    config = tiny_config(vocab_size=8, max_positions=512)
    params = realistic_params(config)
    # id 0 is what the sampler pads with and, in this vocabulary of 8, is drawn all the time.
    greedy = Request("g", prompt, Decoding(0.0, max_new_tokens=30, stop_ids=()))
    drawn = Request("t", prompt, Decoding(1.5, max_new_tokens=60))
    found = run(make_sampler(config=config, params=params), [greedy, drawn, *make_requests(5, vocab=8)])
    assert found["g", 0].token_ids == greedy_loop(config, params, greedy)
    completion = found["t", 0]
    assert 0 in completion.token_ids[:-1]
    assert len(completion.token_ids) == 60
    np.testing.assert_allclose(completion.logprobs, expected_logprobs(config, params, completion), atol=1e-4)


def test_update_takes_the_weights_it_is_given():
    other = realistic_params(CONFIG, seed=1)
    sampler, fresh = make_sampler(), make_sampler(params=other)
    requests = make_requests(8)
    before = run(sampler, requests)
    assert sampler.version == 0
    under_way = sampler.generate(requests)
    started = next(under_way)
    sampler.update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), other))
    assert sampler.version == 1
    assert tokens(run(sampler, requests)) == tokens(run(fresh, requests)) != tokens(before)
    rest = {(c.request.id, c.request.sample): c for c in [started, *under_way]}
    assert tokens(rest) == tokens(before)
    sampler.update(unstack(PARAMS))
    assert tokens(run(sampler, requests)) == tokens(before)


def test_update_casts_and_keeps_nothing_of_the_givers_buffers():
    options = Options(dtype=jnp.bfloat16)
    sampler = make_sampler(options=options)
    given = jax.tree.map(jnp.asarray, PARAMS)
    sampler.update(given)
    listed = unstack(jax.tree.map(lambda x: x.astype(jnp.bfloat16), given))
    sampler.update(listed)
    for leaf in [*jax.tree.leaves(given), *jax.tree.leaves(listed)]:
        leaf.delete()  # as donating them to a training step would
    assert {x.dtype for x in jax.tree.leaves(sampler._params)} == {jnp.dtype(jnp.bfloat16)}
    assert len(run(sampler, make_requests(3))) == 3


def test_a_row_that_turns_nan_is_named_and_the_others_go_on():
    # Token 1 has a NaN embedding: only rows that read it are harmed. No one draws it: the tables are not tied.
    broken = {**PARAMS, "embedding": np.array(PARAMS["embedding"]), "lm_head": np.array(PARAMS["lm_head"])}
    broken["embedding"][1], broken["lm_head"][1] = np.nan, 0
    how = Decoding(0.0, max_new_tokens=12)
    good = [Request(f"good-{i}", (3, 4, 5 + i), how) for i in range(11)] + [Request("same head", (2, 3), how)]
    bad = [Request("bad one", (2,) + (1,) * 50, how), Request("bad two", (1,), how, sample=4)]
    found = []
    stream = make_sampler(params=broken).generate([*bad, *good])
    with pytest.raises(RrmError, match=r"2 request.*'bad one' \(sample 0\), 'bad two' \(sample 4\)"):
        found.extend(stream)
    # Twelve through eight slots: some were served by the slot of a bad row, with NaN beyond their own prompts.
    assert {c.request.id: c.token_ids for c in found} == {r.id: greedy_loop(CONFIG, broken, r) for r in good}


def test_requests_are_taken_lazily():
    taken = []

    def endless():
        for i in range(10_000):
            taken.append(i)
            yield Request(f"r{i}", (1 + i % 5, 2), Decoding(1.0, max_new_tokens=1 + i % 7))

    stream = make_sampler(batch_size=8).generate(endless())
    assert taken == []
    for _ in range(6):
        next(stream)
    assert len(taken) < 24
    assert list(make_sampler().generate([])) == []


def test_progress_counts_completions_and_tokens():
    seen, shown = [], []

    def progress(stats):
        seen.append((stats.completions, stats.tokens))
        shown.append(str(stats))

    found = run(make_sampler(progress=progress), make_requests(9))
    assert seen[-1] == (9, sum(len(c.token_ids) for c in found.values()))
    assert seen == sorted(seen)
    assert shown[-1].startswith("9 completions, 216 tokens, ")
    assert "mean length 24, rows " in shown[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ()}, "empty prompt"),
        ({"prompt_ids": (1, 64)}, "prompt id 64 is outside the vocabulary of 64"),
        ({"prompt_ids": (1, -1)}, "prompt id -1"),
        (
            {"prompt_ids": (1,) * 500, "decoding": Decoding(max_new_tokens=30)},
            "512 positions by 18; lower max_new_tokens",
        ),
        ({"seed": -1}, "seed -1"),
        ({"sample": 1 << 32}, "sample 4294967296"),
    ],
)
def test_unservable_requests_are_refused_before_anything_is_drawn(change, message):
    good = Request("good", (1, 2), Decoding(max_new_tokens=3))
    bad = Request(**{"id": "odd", "prompt_ids": (1,), "decoding": good.decoding} | change)
    with pytest.raises(RrmError, match=rf"'odd'.*{message}"):
        next(make_sampler().generate([good, bad]))


def test_wrong_construction_is_refused():
    with pytest.raises(RrmError, match="batch_size"):
        make_sampler(batch_size=0)
    with pytest.raises(RrmError, match="mesh together"):
        make_sampler(options=Options(spec=partition_spec))


@pytest.mark.thorough
def test_dynamic_rope_grows_past_the_trained_length_as_cached_decoding_does():
    config = tiny_config(max_positions=32, rope=Rope(kind="dynamic", factor=4.0))
    params = jax.tree.map(jnp.asarray, unstack(PARAMS))
    requests = make_requests(5, seed=2, temperature=0.0, max_new_tokens=60)
    found = run(make_sampler(config=config), requests)
    plain = run(make_sampler(), requests)
    begin = jax.jit(decoder.prefill, static_argnums=(0, 4))
    step = jax.jit(decoder.decode, static_argnums=0)
    for request in requests:
        length = len(request.prompt_ids)
        ids, n = np.zeros((1, 64), np.int32), np.array([length], np.int32)
        ids[0, :length] = request.prompt_ids
        hidden, cache = begin(config, params, ids, n, LONGEST)
        expected = []
        for _ in range(60):
            expected.append(int(jnp.argmax(decoder.unembed(config, params, hidden)[0])))
            hidden, cache = step(config, params, cache, jnp.int32(expected[-1:]))
        assert found[request.id, request.sample].token_ids == tuple(expected)
    assert tokens(found) != tokens(plain)  # so the stretch did matter


@pytest.mark.thorough
def test_two_processes_agree_with_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.sampling.two_processes"]
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    workers = [
        subprocess.Popen([*command, str(rank), str(port)], cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0]
    alone = {key[0]: ids for key, ids in tokens(run(make_sampler(), two_processes.make_requests())).items()}
    for output in outputs:
        found = json.loads(output.splitlines()[-1])
        assert {name: tuple(ids) for name, ids in found.items()} == alone


def test_arrays_in_place_are_used_as_they_are():
    listed = jax.tree.map(jnp.asarray, unstack(PARAMS))
    assert make_sampler(params=listed)._params is listed
    assert make_sampler(params=stack(listed))._params is not listed


@pytest.mark.thorough
def test_an_idle_prompt_that_no_longer_fits_its_place_is_computed_again():
    rng = np.random.default_rng(0)
    long = tuple(rng.integers(0, CONFIG.vocab_size, 200).tolist())
    short = [tuple(rng.integers(0, CONFIG.vocab_size, 5).tolist()) for _ in range(3)]
    how = Decoding(1.0, max_new_tokens=40)
    requests = [Request("first", long, Decoding(1.0, max_new_tokens=2))]
    # So many that the last one is not known yet when the places are cut to the short ones.
    requests += [Request(f"short {at}", short[at % 3], how) for at in range(24)]
    requests.append(Request("again", long, how))
    sampler = make_sampler(batch_size=4)
    alone = {request.id: next(iter(sampler.generate([request]))).token_ids for request in requests}
    assert {c.request.id: c.token_ids for c in sampler.generate(iter(requests))} == alone
