"""What a sampler says of itself: counts against what was really drawn, bytes and memory by hand."""

import types

import jax
import jax.numpy as jnp
import pytest

from rrm_jax.parallel.accelerators import accelerator
from rrm_jax.sampling import memory
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.stats import Stats
from tests.sampling.common import CONFIG, make_sampler, run

pytestmark = pytest.mark.usefixtures("quick_compiles")


def sampled(requests, **how):
    last = {}
    sampler = make_sampler(progress=lambda stats: last.update(stats=stats), block=1, **how)
    run(sampler, requests)
    return sampler, last["stats"]


def test_bytes_are_the_weights_and_the_filled_columns_of_every_step():
    how = Decoding(0.0, max_new_tokens=5)
    sampler, stats = sampled([Request("r", (1, 2, 3), how, sample=i) for i in range(2)])
    parameters = CONFIG.num_parameters
    column = CONFIG.num_layers * 2 * CONFIG.num_kv_heads * CONFIG.head_dim * 4  # keys and values, float32
    assert stats.weight_bytes == 4 * parameters
    assert stats.column_bytes == column
    # Four steps end with rows at work, which by then have drawn 1 to 4; the prompt of three is read once for both.
    # The fifth leaves none.
    assert stats.bytes_read == 5 * 4 * parameters + sum(3 + 2 * n for n in range(1, 5)) * column
    assert (stats.steps, stats.row_steps, stats.slot_steps, stats.busy) == (5, 10, 10, 1.0)
    assert (stats.tokens, stats.completions, stats.longest) == (10, 2, 8)
    assert (stats.naive_prefill, stats.prefilled, stats.prefill_computed) == (6, 3, 32)
    assert stats.compiled <= sampler.compilations
    assert stats.roofline is None  # a CPU's bandwidth is not in the table


@pytest.mark.thorough
def test_int8_columns_count_their_scales():
    _, stats = sampled([Request("r", (1, 2, 3), Decoding(0.0, max_new_tokens=2))], cache_dtype=jnp.int8)
    assert stats.column_bytes == CONFIG.num_layers * CONFIG.num_kv_heads * 2 * (CONFIG.head_dim + 4)


def test_bandwidth_is_that_of_all_devices(monkeypatch):
    sampler = make_sampler()
    devices = len(jax.tree.leaves(sampler._params)[0].sharding.device_set)
    monkeypatch.setattr("rrm_jax.sampling.stats.accelerator_of", lambda device: accelerator("h200"))
    assert Stats.of(sampler).bandwidth == devices * 4.8e12


def test_the_share_of_the_roofline_is_shown():
    stats = Stats(weight_bytes=1000, column_bytes=10, bandwidth=1e6, bytes_read=250_000)
    stats.started -= 0.5
    assert stats.roofline == pytest.approx(0.5, abs=0.01)
    assert str(stats).endswith(" % of bandwidth")


def test_the_advice_fits_the_memory(monkeypatch):
    sampler = make_sampler(batch_size=64)
    stats = Stats(weight_bytes=4 << 30, column_bytes=1 << 20, bandwidth=None, longest=1024)  # a GiB a row
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 20 << 30})
    leaf = types.SimpleNamespace(sharding=types.SimpleNamespace(device_set=[device]))
    monkeypatch.setattr(sampler, "_params", [leaf])
    assert "Lower batch_size (--batch-size) to 14," in memory._advice(sampler, stats, "RESOURCE_EXHAUSTED")
    device.memory_stats = lambda: None
    assert "Lower batch_size (--batch-size) to 32," in memory._advice(sampler, stats, "RESOURCE_EXHAUSTED")
