"""What judging costs: by hand, against a published table of the same arithmetic, and against published measurements."""

import dataclasses

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.parallel.accelerators import accelerator
from rrm_jax.parallel.serving_cost import cached_numbers, decode_step_seconds, prefill_flops, serving_cost

H100 = accelerator("h100")
RRM_7B, RRM_32B = PAPER_MODELS["7b"], PAPER_MODELS["32b"]
LLAMA_2_13B = DecoderConfig(
    vocab_size=32_000, hidden_size=5120, num_layers=40, num_heads=40, num_kv_heads=40, head_dim=128,
    intermediate_size=13_824, max_positions=4096,
)  # fmt: skip
QWEN3_14B = DecoderConfig(
    vocab_size=151_936, hidden_size=5120, num_layers=40, num_heads=40, num_kv_heads=8, head_dim=128,
    intermediate_size=17_408, max_positions=40_960,
)  # fmt: skip
QWEN3_32B = dataclasses.replace(QWEN3_14B, num_layers=64, num_heads=64, intermediate_size=25_600)


def test_the_papers_models_have_the_parameters_of_their_checkpoints():
    """What the released safetensors add up to."""
    published = {"1.5b": 1_777_088_000, "7b": 7_615_616_512, "14b": 14_770_033_664, "32b": 32_763_876_352}
    assert {name: config.num_parameters for name, config in PAPER_MODELS.items()} == published


def test_a_7b_on_one_h100_by_hand():
    """15.2 GB of weights, of which 1.09 GB are the input table; 57,344 bytes a token in the cache."""
    cost = serving_cost(RRM_7B, H100, prompts=100, votes=500, prompt_tokens=1000, new_tokens=2000, efficiency=1.0)
    token = 28 * 4 * 128 * 2 * 2
    assert 2 * cached_numbers(RRM_7B) == token == 57_344
    table = 152_064 * 3584
    usable = 0.9 * 80 * 2**30
    assert usable - 15.2e9 == pytest.approx(62.1e9, rel=0.001)
    assert (cost.devices, cost.slots) == (1, 492)  # 62.08e9 / (57,344 × (1000 / 5 + 2000)) = 492.1
    read = 2 * (7_615_616_512 - table) + 492 * token * (200 + 1000)
    products = 492 * (2 * (7_615_616_512 - table) + 4 * 28 * 28 * 128 * 2000)
    assert products / 989e12 < read / 3.35e12
    assert cost.decode_seconds == pytest.approx(500 * 2000 / 492 * read / 3.35e12)
    prefill = 2 * (7_615_616_512 - 2 * table) * 1000 + 2 * 28 * 28 * 128 * 1000**2
    assert prefill_flops(RRM_7B, 1000) == prefill
    assert cost.prefill_seconds == pytest.approx(100 * prefill / 989e12)
    assert cost.device_seconds == cost.prefill_seconds + cost.decode_seconds
    assert cost.tokens_per_second == pytest.approx(1e6 / cost.device_seconds)


def test_a_32b_takes_two_h100s_and_half_the_efficiency_twice_the_time():
    """65.5 GB of weights fit one, but with 45 sequences only; 262,144 bytes a token in the cache."""
    assert 2 * cached_numbers(RRM_32B) == 64 * 8 * 128 * 2 * 2 == 262_144
    work = {"prompts": 10_000, "votes": 10_000, "prompt_tokens": 500, "new_tokens": 500}
    cost = serving_cost(RRM_32B, H100, **work)
    assert (cost.devices, cost.slots) == (2, 339)  # (2 × 77.31e9 − 65.53e9) / 262.1e6 = 339.9
    ideal = serving_cost(RRM_32B, H100, **work, efficiency=1.0)
    assert cost.device_seconds == pytest.approx(2 * ideal.device_seconds)
    assert cost.device_seconds == 2 * (cost.prefill_seconds + cost.decode_seconds)
    alone = serving_cost(RRM_32B, H100, **work, devices=1)
    assert (alone.devices, alone.slots) == (1, 44)  # 11.78e9 / 262.1e6 = 44.9
    assert alone.device_seconds > 1.5 * cost.device_seconds


def test_large_batches_are_bound_by_arithmetic_and_small_ones_by_memory():
    how = {"devices": 1, "cached": 100.0, "seen": 100.0}
    one, two = (decode_step_seconds(RRM_7B, H100, slots=slots, **how) for slots in (1, 2))
    assert two == pytest.approx(one, rel=0.001)  # the weights are read anyway
    many, more = (decode_step_seconds(RRM_7B, H100, slots=slots, **how) for slots in (4000, 8000))
    assert more == pytest.approx(2 * many)
    flops = 2 * (RRM_7B.num_parameters - 152_064 * 3584) + 4 * 28 * 28 * 128 * 100
    assert many == pytest.approx(4000 * flops / 989e12)


@pytest.mark.parametrize(("slots", "milliseconds"), [
    (1, 4.98), (8, 12.13), (16, 20.30), (32, 36.65), (64, 69.33), (240, 249.09),
])  # fmt: skip
def test_steps_against_a_published_table(slots, milliseconds):
    """The book “How to Scale Your Model”, on inference: LLaMA 2-13B on 8 v5e, contexts of 8,192 tokens."""
    step = decode_step_seconds(LLAMA_2_13B, accelerator("v5e"), devices=8, slots=slots, cached=8192, seen=8192)
    assert 1000 * step == pytest.approx(milliseconds, rel=0.015)  # the book counts the input table too


@pytest.mark.parametrize(("config", "prompt", "new", "vllm", "tensorrt"), [
    (QWEN3_14B, 217.4, 201.6, 3922, 5770), (QWEN3_14B, 4000, 200, 5153, 6419), (QWEN3_14B, 2000, 100, 5967, 7474),
    (QWEN3_32B, 217.4, 201.6, 1731, 2054), (QWEN3_32B, 4000, 200, 1837, 2038), (QWEN3_32B, 2000, 100, 2521, 2716),
])  # fmt: skip
def test_the_order_of_magnitude_against_published_measurements(config, prompt, new, vllm, tensorrt):
    """GPUStack's performance lab, bfloat16 on one A100 of 80 GB: tokens a second, read and written, by two servers."""
    cost = serving_cost(
        config, accelerator("a100-80"), prompts=1000, votes=1000, prompt_tokens=prompt, new_tokens=new, devices=1
    )
    estimate = 1000 * (prompt + new) / cost.device_seconds
    assert tensorrt / 1.6 < estimate < 1.6 * vllm


def test_votes_that_share_a_prompt_prefill_and_keep_it_once():
    how = {"votes": 8000, "prompt_tokens": 2000, "new_tokens": 500}
    apart, shared = (serving_cost(RRM_7B, H100, prompts=prompts, **how) for prompts in (8000, 1000))
    assert apart.prefill_seconds == pytest.approx(8 * shared.prefill_seconds)
    assert shared.slots == pytest.approx(apart.slots * 2500 / (2000 / 8 + 500), rel=0.01)
    assert shared.decode_seconds < apart.decode_seconds
    assert shared.new_tokens == apart.new_tokens == 4e6


def test_few_votes_take_few_slots_and_no_more_devices_than_they_need():
    few = serving_cost(RRM_32B, H100, prompts=2, votes=4, prompt_tokens=500, new_tokens=500)
    assert (few.devices, few.slots) == (1, 4)
    given = serving_cost(RRM_7B, H100, prompts=900, votes=900, prompt_tokens=500, new_tokens=500, slots=64)
    assert (given.devices, given.slots) == (1, 64)
    small = serving_cost(RRM_7B, accelerator("v5e"), prompts=900, votes=900, prompt_tokens=500, new_tokens=500)
    assert small.devices == 2  # one has 15.5 GB to use, the weights are 15.2


def test_narrow_weights_and_caches_make_room():
    work = {"prompts": 5000, "votes": 5000, "prompt_tokens": 1000, "new_tokens": 1000}
    plain, narrow = (
        serving_cost(RRM_7B, H100, **work),
        serving_cost(RRM_7B, H100, **work, weight_bytes=1, cache_bytes=1),
    )
    assert narrow.slots == pytest.approx(2 * (77.31 - 7.62) / (77.31 - 15.23) * plain.slots, abs=2)
    assert narrow.prefill_seconds == plain.prefill_seconds  # computed in bfloat16 all the same
    assert narrow.decode_seconds < plain.decode_seconds


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompts": 0}, "10 votes on 0 prompts"),
    ({"votes": 0, "prompts": 0}, "0 votes on 0 prompts"),
    ({"prompts": 11}, "10 votes on 11 prompts"),
    ({"new_tokens": 0}, "completions of 0 tokens"),
    ({"efficiency": 1.5}, "efficiency 1.5 is no share"),
    ({"devices": 1}, "1 × v5e, 15.5 GB of memory to use, do not hold weights of 65.5 GB and sequences of 0.5"),
    ({"devices": 8, "slots": 200, "prompts": 200, "votes": 200}, r"8 × v5e, 123.7 GB .* of 0.52 GB, 200 at a time"),
])  # fmt: skip
def test_what_cannot_be_is_refused(changes, message):
    work = {"prompts": 10, "votes": 10, "prompt_tokens": 1000, "new_tokens": 1000} | changes
    with pytest.raises(RrmError, match=message):
        serving_cost(RRM_32B, accelerator("v5e"), **work)
