"""What a training run costs: RRM-7B by hand, and the devices that configurations say they are meant for."""

import pytest

from rrm_jax.config import load_config
from rrm_jax.errors import RrmError
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.parallel.accelerators import accelerator
from rrm_jax.parallel.serving_cost import serving_cost
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.training_cost import state_bytes, training_cost

H100, RRM_7B = accelerator("h100"), PAPER_MODELS["7b"]
LENGTHS = {"prompt_tokens": 1000, "new_tokens": 2000}


def config(name="rrm_7b.yaml", *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, name, ["data.train=pairs.jsonl", *overrides])


def test_rrm_7b_by_hand():
    """720 steps of 128 × 16 completions; updates, log-probs of the reference and, for 2 updates, the old policy."""
    cost = training_cost(config(), RRM_7B, H100, **LENGTHS)
    layer = 3584 * 3584 + 2 * 3584 * 512 + 3584 * 3584 + 3 * 3584 * 18_944
    products = 28 * layer * 3000 + 152_064 * 3584 * 2000  # logits of what was written only
    attention = 2 * 28 * 28 * 128 * (3000 * 3001 // 2)
    flops = 6 * (products + attention) + 2 * 2 * (products + attention)
    assert cost.learning_device_seconds == pytest.approx(720 * 2048 * flops / (989e12 * 0.4))
    replica = serving_cost(RRM_7B, H100, prompts=128, votes=2048, devices=1, slots=256 // 8, **LENGTHS)
    assert cost.devices == 8
    assert cost.sampling_device_seconds == pytest.approx(720 * replica.device_seconds)
    ideal = training_cost(config(), RRM_7B, H100, **LENGTHS, mfu=0.8, efficiency=1.0)
    assert ideal.device_seconds == pytest.approx(cost.device_seconds / 2)
    assert cost.device_seconds == cost.sampling_device_seconds + cost.learning_device_seconds
    assert cost.seconds == cost.device_seconds / 8
    assert (cost.new_tokens, cost.learnt_tokens) == (720 * 2048 * 2000, 720 * 2048 * 3000)
    assert 300 < cost.device_seconds / 3600 < 3000  # days, not hours or months, on 8


@pytest.mark.parametrize(("name", "model", "devices"), [
    ("rrm_1.5b.yaml", "1.5b", 1), ("rrm_7b.yaml", "7b", 8), ("rrm_14b.yaml", "14b", 16), ("rrm_32b.yaml", "32b", 32),
    ("rrm_7b_lora.yaml", "7b", 1),
])  # fmt: skip
def test_the_least_devices_of_80_gb_are_those_of_the_configurations(name, model, devices):
    """Their heads tell what they are meant for, by an arithmetic of its own (1.5B: which number is enough)."""
    assert training_cost(config(name), PAPER_MODELS[model], H100, **LENGTHS).devices == devices


@pytest.mark.parametrize(("overrides", "passes"), [
    ((), 6 + 2 + 2), (("grpo.kl_coef=0",), 6 + 2), (("grpo.epochs=2",), 12 + 2 + 2),
    (("grpo.mini_batch_prompts=128",), 6 + 2), (("grpo.mini_batch_prompts=128", "grpo.kl_coef=0"), 6),
    (("grpo.mini_batch_prompts=128", "grpo.kl_in=reward"), 6 + 2 + 2),
])  # fmt: skip
def test_passes_over_a_steps_completions(overrides, passes):
    cost = training_cost(config("rrm_7b.yaml", *overrides), RRM_7B, H100, **LENGTHS)
    assert cost.learning_device_seconds == pytest.approx(
        passes / 10 * training_cost(config(), RRM_7B, H100, **LENGTHS).learning_device_seconds
    )


def test_adapters_save_the_gradients_by_the_weights():
    full, adapters = (
        training_cost(config(name, "rollout.batch_size=32"), RRM_7B, H100, **LENGTHS, devices=1)
        for name in ("rrm_7b.yaml", "rrm_7b_lora.yaml")
    )
    assert adapters.sampling_device_seconds == full.sampling_device_seconds
    share = adapters.learning_device_seconds / full.learning_device_seconds
    assert 0.8 < share < 0.82  # (4 + 4) of (6 + 4), but for attention


def test_supervised_training_samples_nothing():
    supervised = config("warm_start.yaml")
    cost = training_cost(supervised, RRM_7B, H100, **LENGTHS)
    sequences = supervised.steps * supervised.supervised.batch_size
    assert (cost.sampling_device_seconds, cost.new_tokens, cost.learnt_tokens) == (0, 0, 3000 * sequences)
    a_completion = training_cost(config(), RRM_7B, H100, **LENGTHS).learning_device_seconds / (720 * 2048)
    assert cost.learning_device_seconds == pytest.approx(0.6 * a_completion * sequences)


@pytest.mark.parametrize(("overrides", "expected"), [
    ((), 22), (("optimizer.moments=int8",), 16), (("optimizer.moments=bfloat16",), 18),
    (("optimizer.offload=true",), 14), (("optimizer.kind=adafactor",), 14), (("grpo.kl_coef=0",), 20),
    (("grpo.offload_reference=true",), 20),
    (("model.compute_dtype=float32",), 4 + 4 + 8 + 4),
])  # fmt: skip
def test_bytes_a_parameter_are_those_that_the_configuration_counts(overrides, expected):
    assert state_bytes(config("rrm_7b.yaml", *overrides)) == expected
    assert state_bytes(config("rrm_7b_lora.yaml")) == 2


def test_devices_and_meshes_that_do_not_fit_are_refused():
    spread = training_cost(config("rrm_32b.yaml"), PAPER_MODELS["32b"], H100, **LENGTHS, devices=64)
    assert spread.devices == 64
    with pytest.raises(RrmError, match=r"mesh .*'tensor': 4.* does not fit 6 device"):
        training_cost(config("rrm_32b.yaml"), PAPER_MODELS["32b"], H100, **LENGTHS, devices=6)
    with pytest.raises(RrmError, match="sizes are ≥ 1, and one may be -1"):
        training_cost(config("rrm_7b.yaml", "mesh.tensor=0"), RRM_7B, H100, **LENGTHS)
    with pytest.raises(RrmError, match=r"no number of v5e .* the sampler's weights, 15 GB split by tensor alone"):
        training_cost(config(), RRM_7B, accelerator("v5e"), **LENGTHS)
    assert training_cost(config("rrm_7b.yaml", "mesh.tensor=8"), RRM_7B, accelerator("v5e"), **LENGTHS).devices == 32
    fixed = config("rrm_7b.yaml", "mesh.fsdp=4", "mesh.data=2")
    assert training_cost(fixed, RRM_7B, H100, **LENGTHS).devices == 8
    with pytest.raises(RrmError, match="mfu 0 is no share"):
        training_cost(config(), RRM_7B, H100, **LENGTHS, mfu=0)
