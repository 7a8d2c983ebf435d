"""How fast exchanges go, and how often decoding runs, by hand."""

import pytest
from jax.sharding import AbstractMesh

from rrm_jax.config import load_config
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.parallel.mesh import AXES
from rrm_jax.planning import search
from rrm_jax.planning.roofline import link_speeds
from rrm_jax.planning.topology import topology
from rrm_jax.sampling.sampler import BLOCK
from rrm_jax.training.config import TrainConfig


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # GPU n is in box n // 8. Of two data-parallel copies each pair has one GPU in each box, and one adapter there.
        ((2, 8, 1), {"data": 50e9, "fsdp": 450e9, "data × fsdp": 400e9}),
        ((1, 16, 1), {"fsdp": 400e9}),
        ((1, 8, 2), {"fsdp": 200e9, "tensor": 450e9, "fsdp × tensor": 400e9}),
        ((1, 2, 8), {"fsdp": 50e9, "tensor": 450e9}),
    ],
)
def test_what_leaves_a_box_goes_through_its_members_adapters(sizes, expected):
    mesh = AbstractMesh(sizes, AXES)
    found = link_speeds(mesh, topology("h100:16", compiling=False))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("rows", [16, 64, 256, 1024])
def test_more_rows_than_completions_decode_no_faster(rows):
    """64 completions of 8,192 tokens, one after another: 128 blocks of 64 at least, whatever the batch's size."""
    changes = ["rollout.prompts_per_step=8", "grpo.mini_batch_prompts=8", "rollout.group_size=8"]
    changes += ["mesh.tensor=4", "mesh.fsdp=4", f"rollout.batch_size={rows}", "model.path=none"]
    config = load_config(TrainConfig, "rrm_7b.yaml", changes)
    made = search.analytic_plan(config, PAPER_MODELS["7b"], topology("v6e:4x4", compiling=False))
    (decode,) = (phase for phase in made.time.phases if phase.name == "decode")
    assert decode.runs == max(64 / rows, 1) * 8192 / BLOCK
    if rows > 64:
        config = load_config(TrainConfig, "rrm_7b.yaml", [*changes, "rollout.batch_size=64"])
        enough = search.analytic_plan(config, PAPER_MODELS["7b"], topology("v6e:4x4", compiling=False))
        assert made.time.seconds == enough.time.seconds
