"""Every configuration that comes with the package fits the devices that its head names, by arithmetic; and compiles."""

import dataclasses
from pathlib import Path

import jax
import pytest

from rrm_jax.config import load_config
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.planning import search
from rrm_jax.planning.plan import plan
from rrm_jax.planning.topology import topology
from rrm_jax.testing import tiny_config
from rrm_jax.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("quick_compiles")

SHIPPED = [
    ("rrm_1.5b", "1.5b", "h100:8"), ("rrm_7b", "7b", "h100:8"), ("rrm_14b", "14b", "h100:16"),
    ("rrm_32b", "32b", "h100:32"), ("rrm_7b_lora", "7b", "h100:1"), ("rrm_7b", "7b", "v5p:4x4x2"),
    ("rrm_14b", "14b", "v5p:2x2x4"), ("rrm_32b", "32b", "v5p:4x4x4"), ("direct_judge_1.5b", "1.5b", "h100:8"),
    ("direct_judge_7b", "7b", "h100:8"), ("direct_judge_14b", "14b", "h100:16"), ("direct_judge_32b", "32b", "h100:32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "model", "devices"), SHIPPED)
def test_it_fits_what_it_is_meant_for(name, model, devices):
    config = load_config(TrainConfig, f"{name}.yaml")
    made = search.analytic_plan(config, PAPER_MODELS[model], topology(devices, compiling=False))
    assert made.fits, f"{made.peak.name} takes {made.peak.total / 2**30:.1f} GiB"


def test_all_sizes_and_methods_are_named():
    configs = Path(__file__).parents[2] / "configs"
    named = {name for name, *_ in SHIPPED}
    assert named == {path.stem for path in configs.glob("*.yaml") if path.stem.startswith(("rrm_", "direct_"))}


def test_a_shipped_configuration_compiles_in_small():
    """All programs of rrm_32b.yaml as it stands, but for lengths, on a tiny model: 2 × 4 devices."""
    small = ["judge.max_prompt_tokens=24", "rollout.max_new_tokens=40", "pack.row_tokens=64", "rollout.batch_size=16",
             "pack.micro_batch_tokens=128"]  # fmt: skip
    config = load_config(TrainConfig, "rrm_32b.yaml", small)
    devices = dataclasses.replace(topology("v5p:2x2x2", compiling=False), devices=jax.devices(), compiler="CPU")
    decoder = tiny_config(num_heads=8, num_kv_heads=4, vocab_size=64)
    made = plan(config, decoder, devices)
    assert made.mesh == {"data": 1, "fsdp": 2, "tensor": 4}
    assert [one.name for one in made.footprints if one.failed] == []
    assert {x.axes for one in made.footprints for x in one.exchanges} >= {"fsdp", "tensor"}
