"""What the engine computes, shares, compiles and keeps: float32 on small random models, on one and eight devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.models.cache import Segment
from rrm_jax.models.config import Rope
from rrm_jax.models.decoder import Options
from rrm_jax.models.params import is_spec as is_param_spec
from rrm_jax.models.params import param_specs
from rrm_jax.parallel.mesh import MeshShape, make_mesh, param_sharding, partition_spec
from rrm_jax.sampling import control, engine
from rrm_jax.sampling.block import Start, Table, decode_block
from rrm_jax.sampling.lookup import PromptLookup
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.testing import realistic_params, tiny_config
from tests.sampling.common import (
    CONFIG,
    PARAMS,
    expected_logprobs,
    greedy_loop,
    is_greedy,
    make_requests,
    make_sampler,
    run,
    tokens,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")
LONG = tiny_config(max_positions=4096)


def with_stats(**how):
    """A sampler and the statistics that its last block showed."""
    last = {}
    return make_sampler(progress=lambda stats: last.update(stats=stats), **how), last


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist())


def test_samples_of_one_prompt_share_its_prefill():
    sampler, last = with_stats()
    how = Decoding(1.0, max_new_tokens=20)
    requests = [Request(name, prompt(at, 5 + 4 * at), how, sample=i) for at, name in enumerate("ab") for i in range(11)]
    grouped = run(sampler, requests)
    # 22 requests through 8 rows in several fills: each prompt once, though its group spans fills.
    assert last["stats"].prefilled == 5 + 9
    assert last["stats"].naive_prefill == 11 * (5 + 9)
    mixed = run(make_sampler(), requests[::2] + requests[1::2])
    assert tokens(mixed) == tokens(grouped)
    apart = {}
    for request in requests:
        apart |= run(make_sampler(batch_size=1), [request])
    assert tokens(apart) == tokens(grouped)
    for key, completion in grouped.items():
        np.testing.assert_allclose(completion.logprobs, apart[key].logprobs, atol=1e-4)
        expected = expected_logprobs(CONFIG, PARAMS, completion)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_prompts_with_a_common_head_compute_it_once():
    head = prompt(0, 300)
    firsts = [head + prompt(10 + i, 200) for i in range(4)]
    prompts = [first + prompt(20 + i, 60) for first in firsts for i in range(3)]
    how = Decoding(0.0, max_new_tokens=8)
    requests = [Request(f"p{i}", ids, how) for i, ids in enumerate(prompts)]
    sampler, last = with_stats(batch_size=16, config=LONG)
    found = run(sampler, requests)
    assert last["stats"].naive_prefill == 12 * 560
    assert last["stats"].prefilled == 300 + 4 * 200 + 12 * 60  # the root, each first once, each tail once
    for request in requests:
        assert is_greedy(LONG, PARAMS, found[request.id, 0])


def test_heads_are_found_again_after_their_owners_finished():
    head = prompt(0, 100)
    requests = [Request(f"p{i}", head + prompt(i, 20), Decoding(0.0, max_new_tokens=5)) for i in range(1, 20)]
    sampler, last = with_stats(batch_size=2)
    found = run(sampler, requests)
    assert last["stats"].prefilled == 100 + 19 * 20
    for request in requests[::6]:
        assert is_greedy(CONFIG, PARAMS, found[request.id, 0])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("rope", "window"),
    [(Rope(), None), (Rope(), 24), (Rope(kind="dynamic", factor=4.0), None)],
    ids=["default", "windowed", "dynamic"],
)
def test_long_prompts_in_chunks_beside_short_ones(rope, window):
    config = tiny_config(
        max_positions=512, rope=rope, sliding_window=window, window_layers=(True, False) if window else ()
    )
    lengths = [700, 3, 512, 513, 64, 65, 400, 1, 33] if rope.kind == "dynamic" else [450, 3, 64, 65, 400, 1, 33]
    how = Decoding(0.0, max_new_tokens=12)
    requests = [Request(f"p{n}", prompt(n, n), how) for n in lengths]
    found = run(make_sampler(config=config, batch_size=4), requests)
    for request in requests:
        if rope.kind == "dynamic" and len(request.prompt_ids) + 12 > 512:
            continue  # beyond the trained length a cache keeps the rotations of the time it was written
        assert is_greedy(config, PARAMS, found[request.id, 0])


@pytest.mark.thorough
def test_decoding_goes_on_while_a_long_prompt_is_prefilled(monkeypatch):
    sampler = make_sampler(config=LONG, block=4)
    order = []
    for name in ("prefill", "decode_block"):
        original = getattr(sampler._programs, name)

        def noted(*args, _name=name, _original=original, **how):
            order.append(_name)
            return _original(*args, **how)

        monkeypatch.setattr(sampler._programs, name, noted)
    how = Decoding(0.0, max_new_tokens=60)
    short = [Request(f"s{i}", prompt(i, 9), Decoding(0.0, max_new_tokens=10 + 50 * (i > 0))) for i in range(8)]
    long = Request("long", prompt(99, 3000), how)
    found = run(sampler, [*short, long])
    at = [i for i, name in enumerate(order) if name == "prefill"]
    assert len(at) >= 1 + 6  # the short ones together, then six chunks of 512 at most
    # Two chunks of 512 are the 1,024 tokens that decoding may wait for.
    assert all("decode_block" in order[a:b] for a, b in zip(at[1:], at[3:], strict=False))
    assert is_greedy(LONG, PARAMS, found["long", 0])


def test_all_choices_are_runtime_values_and_compilations_are_few():
    sampler = make_sampler(batch_size=8, config=tiny_config(max_positions=500))
    short = [Request("a", (1, 2, 3), Decoding(1.0, max_new_tokens=10)), Request("b", (4,), Decoding(1.0, 3, 0.5, 9))]
    first = list(sampler.generate(short))
    # One program each: adopt, empty prompts, empty rows, prefill, decode.
    assert sampler.compilations == 5
    how = Decoding(0.3, 7, 0.9, 5, stop_ids=tuple(range(8)), min_p=0.1)
    list(sampler.generate([Request("c", (9,) * 16, how, 3, 4), Request("d", (2,), Decoding(0.0, max_new_tokens=2))]))
    stop = first[0].token_ids[2]
    again = list(
        sampler.generate([Request("a", (1, 2, 3), Decoding(1.0, max_new_tokens=10, stop_ids=(stop,))), short[1]])
    )
    assert {c.request.id: c.token_ids for c in again}["a"][-1] == stop
    sampler.update(PARAMS)
    assert sampler.compilations == 5
    # A longer one grows the rows' columns 64 → 96 → 128, with two moves and a decode program each; when one row is
    # left, the prompts' places shrink (two moves), and the rows do.
    list(sampler.generate([Request("a", (1, 2, 3), Decoding(1.0, max_new_tokens=120)), short[1]]))
    assert sampler.compilations <= 5 + 2 * 3 + 2 + 3


@pytest.mark.thorough
def test_ten_thousand_requests_leave_nothing_behind():
    config = tiny_config(max_positions=2048, num_layers=1)
    sampler = make_sampler(batch_size=64, config=config, params=realistic_params(config))
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5, (10_000, 2)) * [8, 4]

    def requests():
        for i, (length, new) in enumerate(sizes):
            yield Request(f"r{i}", tuple((int(i) * 7 + np.arange(length)) % 64), Decoding(1.0, max_new_tokens=int(new)))

    held, done = [], 0
    for completion in sampler.generate(requests()):
        assert len(completion.token_ids) == completion.request.decoding.max_new_tokens
        done += 1
        if done in (2_000, 6_000, 9_800):
            held.append(sum(x.nbytes for x in jax.live_arrays()))
    assert done == 10_000
    assert max(held) - min(held) < 100_000
    assert sampler.compilations < 60


def test_old_programs_are_forgotten_before_they_are_too_many(monkeypatch):
    sampler = make_sampler()
    expected = tokens(run(sampler, make_requests(9)))
    compiled, held = sampler.compilations, engine.memory_maps()
    run(sampler, make_requests(9))
    assert sampler.compilations == compiled
    monkeypatch.setattr(engine, "MOST_MEMORY_MAPS", 0)
    sampler._programs.compilations += 1  # as when another shape was met
    assert tokens(run(sampler, make_requests(9))) == expected
    assert sampler.compilations > compiled + 1
    if held:
        assert engine.memory_maps() < held + 200


def test_a_batch_that_empties_shrinks():
    rows = []
    sampler = make_sampler(progress=lambda stats: rows.append((stats.slot_steps, stats.steps)))
    requests = [Request(f"r{i}", prompt(i, 9), Decoding(0.0, max_new_tokens=8 if i else 200)) for i in range(8)]
    found = run(sampler, requests)
    slots, steps = rows[-1]
    assert slots < 8 * steps / 2
    assert is_greedy(CONFIG, PARAMS, found["r0", 0])


@pytest.mark.thorough
@pytest.mark.parametrize(("block", "overlap"), [(1, False), (7, True), (64, True)])
def test_block_length_and_overlap_change_nothing(block, overlap):
    requests = make_requests(13, max_new_tokens=30, stop_ids=(3, 9))
    expected = tokens(run(make_sampler(), requests))
    assert tokens(run(make_sampler(block=block, overlap=overlap, batch_size=4), requests)) == expected


def test_a_fixed_number_of_steps_draws_the_same():
    requests = make_requests(13, max_new_tokens=30, stop_ids=(3, 9))
    sampler = make_sampler(overlap=True, block=16)
    sampler.early = False  # as on a GPU
    assert tokens(run(sampler, requests)) == tokens(run(make_sampler(), requests))


@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.03), ("float8_e4m3fn", 0.2)])
def test_narrow_caches_change_logprobs_little(dtype, bound):
    narrow = run(make_sampler(cache_dtype=jnp.dtype(dtype), batch_size=4), make_requests(9, max_new_tokens=40))
    gaps = []
    for completion in narrow.values():
        gaps.append(np.abs(np.array(completion.logprobs) - expected_logprobs(CONFIG, PARAMS, completion)))
    gaps = np.concatenate(gaps)
    assert 0 < gaps.mean() < bound  # logits of this model have a standard deviation of 4
    assert gaps.max() < 20 * bound


@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.1), ("float8_e4m3fn", 0.35)])
def test_narrow_weights_change_logprobs_little(dtype, bound):
    sampler = make_sampler(weight_dtype=jnp.dtype(dtype), batch_size=4)
    kept = {str(x.dtype) for x in jax.tree.leaves(sampler._params["layers"])}
    assert kept == {dtype, "float32"}  # scales, norms and biases
    gaps = []
    for completion in run(sampler, make_requests(9, max_new_tokens=40)).values():
        gaps.append(np.abs(np.array(completion.logprobs) - expected_logprobs(CONFIG, PARAMS, completion)))
    gaps = np.concatenate(gaps)
    assert 0 < gaps.mean() < bound
    assert gaps.max() < 20 * bound


@pytest.mark.thorough
def test_narrow_weights_are_split_over_a_mesh():
    sampler, mesh, dtype = make_sampler(weight_dtype=jnp.int8), make_mesh(MeshShape(2, 2, 2)), jnp.int8
    spread = make_sampler(mesh=mesh, options=Options(spec=partition_spec), weight_dtype=dtype)
    greedy = make_requests(9, temperature=0.0)
    assert tokens(run(spread, greedy)) == tokens(run(sampler, greedy))


@pytest.mark.thorough
def test_failed_rows_leave_no_nan_behind_in_narrow_and_shared_caches():
    broken = {**PARAMS, "embedding": np.array(PARAMS["embedding"]), "lm_head": np.array(PARAMS["lm_head"])}
    broken["embedding"][1], broken["lm_head"][1] = np.nan, 0
    how = Decoding(0.0, max_new_tokens=12)
    bad = [Request("bad", (2,) + (1,) * 50, how, sample=i) for i in range(3)]
    good = [Request(f"good-{i}", (3, 4, 5 + i), how) for i in range(9)]
    found = []
    with pytest.raises(RrmError, match=r"3 request\(s\) were not finite: 'bad' \(sample 0\)"):
        found.extend(make_sampler(params=broken, batch_size=2).generate([*bad, *good]))
    assert {c.request.id: c.token_ids for c in found} == {r.id: greedy_loop(CONFIG, broken, r) for r in good}


@pytest.mark.thorough
def test_rows_that_fail_midway_leave_their_columns_clean():
    broken = {**PARAMS, "embedding": np.array(PARAMS["embedding"])}
    broken["embedding"][1] = np.nan  # a row fails the moment it has drawn token 1, after any number of others
    requests = [Request(f"r{i}", (2, 3 + i % 50), Decoding(1.0, max_new_tokens=30), i) for i in range(60)]
    found = []
    with pytest.raises(RrmError, match="not finite"):
        found.extend(make_sampler(params=broken, batch_size=4).generate(requests))
    clean = tokens(run(make_sampler(), requests))
    expected = {key: ids for key, ids in clean.items() if 1 not in ids[:-1]}
    assert 5 < len(expected) < 55
    assert {(c.request.id, c.request.sample): c.token_ids for c in found} == expected


@pytest.mark.thorough
def test_a_broken_end_of_a_prompt_does_not_reach_the_head_that_others_share():
    broken = {**PARAMS, "embedding": np.array(PARAMS["embedding"]), "lm_head": np.array(PARAMS["lm_head"])}
    broken["embedding"][1], broken["lm_head"][1] = np.nan, 0
    head, how = tuple(2 + token % 50 for token in prompt(0, 100)), Decoding(0.0, max_new_tokens=6)
    for cache_dtype in (None, jnp.int8):
        sampler = make_sampler(params=broken, batch_size=4, cache_dtype=cache_dtype)
        good = [Request(f"good {i}", (*head, 3 + i), how) for i in range(3)]
        found = []
        with pytest.raises(RrmError, match=r"1 request\(s\) were not finite: 'bad'"):
            found.extend(sampler.generate([Request("bad", (*head, 1, 1, 1), how), *good]))
        assert {(c.request.id, 0): c.token_ids for c in found} == tokens(
            run(make_sampler(params=broken, batch_size=4, cache_dtype=cache_dtype), good)
        )


def test_out_of_memory_says_what_to_lower(monkeypatch):
    sampler = make_sampler(batch_size=8)
    original = sampler._programs.decode_block
    blocks = iter([original])

    def fails(*args, **how):
        if (once := next(blocks, None)) is not None:
            return once(*args, **how)
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
        )

    monkeypatch.setattr(sampler._programs, "decode_block", fails)
    requests = [Request(f"r{i}", (1, 2), Decoding(0.0, max_new_tokens=3 + 90 * (i == 7))) for i in range(9)]
    found = []
    with pytest.raises(RrmError, match=r"out of device memory.*95 tokens.*Lower batch_size .* to 4.*17179869184"):
        found.extend(sampler.generate(requests))
    assert found  # what was completed before was given out


def test_other_runtime_errors_are_not_taken_for_memory(monkeypatch):
    sampler = make_sampler(batch_size=8)

    def fails(*args, **how):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(sampler._programs, "decode_block", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(sampler, make_requests(2))


def empty_state(sampler, batch: int, prompts: int):
    programs = sampler._programs
    slots = programs.empty_slots(batch=batch, columns=64, history=0)
    shared = programs.empty_shared(prompts=prompts, columns=32)
    ways = sampler.ways
    table = Table(
        np.zeros(prompts, np.int32),
        np.zeros((ways, prompts // ways, 2), np.int32),
        np.zeros((ways, batch // ways), np.int32),
    )
    start = Start(np.zeros(batch, bool), table.place, np.zeros(batch, np.int32), None)
    return slots, shared, table, control.free_rows(batch, 8, 32), start


def test_the_cache_is_donated_and_not_copied():
    sampler = make_sampler(batch_size=2)
    slots, shared, table, rows, start = empty_state(sampler, 2, 2)
    segments = [x for segment in slots.layers for x in segment if x is not None]
    how = {"steps": 32, "lookup": None, "early": True}
    sampler._programs.decode_block(sampler._params, slots, shared, table, rows, start, 32, 0, **how)
    assert all(x.is_deleted() for x in segments)
    slots, shared, table, rows, start = empty_state(sampler, 2, 2)
    bytes_of_cache = sum(x.nbytes for x in jax.tree.leaves(slots.layers))
    compiled = jax.jit(functools.partial(decode_block, CONFIG, Options(), **how), donate_argnums=1)
    memory = compiled.lower(sampler._params, slots, shared, table, rows, start, 32, 0).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= bytes_of_cache


@pytest.mark.thorough
def test_eight_devices_agree_with_one():
    mesh = make_mesh(MeshShape(2, 2, 2))
    spread = make_sampler(batch_size=6, mesh=mesh, options=Options(spec=partition_spec))
    assert spread.batch_size == 8
    greedy = make_requests(11, temperature=0.0, max_new_tokens=40, stop_ids=(3,))
    groups = [Request("g", prompt(7, 70), Decoding(0.8, max_new_tokens=30), sample=i) for i in range(9)]
    drawn = [*make_requests(11, seed=1, temperature=0.7, top_p=0.9), *groups]
    single = make_sampler()
    assert tokens(run(spread, greedy)) == tokens(run(single, greedy))
    expected, found = run(single, drawn), run(spread, drawn)
    assert tokens(found) == tokens(expected)
    for key, completion in found.items():
        np.testing.assert_allclose(completion.logprobs, expected[key].logprobs, atol=1e-4)
    guessing = make_sampler(mesh=mesh, options=Options(spec=partition_spec), lookup=PromptLookup(3))
    assert tokens(run(guessing, drawn)) == tokens(expected)
    # New weights as the trainer keeps them: stacked, sharded over fsdp and tensor.
    other = realistic_params(CONFIG, seed=1)
    specs = param_specs(CONFIG, stacked=True)
    trained = jax.tree.map(lambda s, x: jax.device_put(x, param_sharding(mesh, s)), specs, other, is_leaf=is_param_spec)
    before = spread.compilations
    spread.update(trained)
    assert spread.compilations - before <= 1
    assert tokens(run(spread, greedy)) == tokens(run(make_sampler(params=other), greedy)) != tokens(expected)
    kernel = spread._params["layers"][0]["attention"]["q_kernel"]
    assert kernel.sharding.spec == partition_spec(("heads", None, None))


def test_no_collective_moves_weights_or_caches():
    mesh = make_mesh(MeshShape(2, 2, 2))
    options = Options(spec=partition_spec)
    spread = make_sampler(mesh=mesh, options=options)
    state = empty_state(spread, 8, 8)
    slots, shared, table, rows, start = state
    assert isinstance(slots.layers[0], Segment)
    assert slots.layers[0].k.sharding.spec == partition_spec(("batch", "kv_heads"))
    with jax.set_mesh(mesh):
        block = jax.jit(functools.partial(decode_block, CONFIG, options, steps=4, lookup=None, early=True))
        text = block.lower(spread._params, slots, shared, table, rows, start, 32, 0).compile().as_text()
    moved = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)", text)
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in moved]
    # The logits of a device's two rows go to its tensor-parallel neighbours; nothing larger does.
    assert max(sizes) == 2 * CONFIG.vocab_size
    assert len(re.findall(" all-reduce", text)) >= 2 * CONFIG.num_layers
