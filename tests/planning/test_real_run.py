"""A plan for CPU devices against a run on them: what is alive between two steps, and the programs that the run used."""

import collections
import gc
from pathlib import Path

import jax
import pytest

from rrm_jax.planning.plan import decoder_of, plan
from rrm_jax.planning.programs import RunPrograms, device_bytes
from rrm_jax.planning.topology import topology
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.rollout_mesh import meshes
from rrm_jax.training.train import train

from ..training.world import make_base, make_data, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")

PROMPT, NEW = 16, 24  # every prompt of the quickstart's world has as many tokens
PROGRAMS = {  # what JAX calls them
    "cast": "jit__cast", "hand-over": "jit__adopt", "prefill": "jit__prefill", "decode": "jit_decode_block",
    "log-probs": "jit_scored", "forward and backward": "jit_accumulate", "apply": "jit__apply",
}  # fmt: skip


def config_of(home: Path) -> TrainConfig:
    """Steps that fill what is planned: rows as long as they can be, a sampled row a part, a full micro-batch."""
    tree = settings(
        home, "run", steps=2, checkpoint__every=2, mesh={"data": 1, "fsdp": 4, "tensor": 2},
        model__path=str(home / "base"), model__compute_dtype="bfloat16", model__remat="full",
        judge__max_prompt_tokens=PROMPT, rollout__prompts_per_step=8, rollout__max_new_tokens=NEW,
        rollout__batch_size=4, grpo__mini_batch_prompts=4, optimizer__learning_rate=1e-5,
        pack__row_tokens=PROMPT + NEW, pack__micro_batch_tokens=8 * (PROMPT + NEW),
    )  # fmt: skip
    return TrainConfig.model_validate(tree)


def alive() -> dict[int, int]:
    """Bytes on each device; a buffer that several arrays show is counted once."""
    sizes = {
        (shard.device.id, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
        for array in jax.live_arrays()
        for shard in array.addressable_shards
    }
    by_device: dict[int, int] = collections.Counter()
    for (device, _), size in sizes.items():
        by_device[device] += size
    return by_device


def loaded() -> dict[str, int]:
    """The programs that this process has: by name what the largest allocates, arguments and results among it."""
    found: dict[str, int] = collections.Counter()
    for one in jax.devices()[0].client.live_executables():
        name = one.hlo_modules()[0].name
        found[name] = max(found[name], one.get_compiled_memory_stats().total_allocation_bytes)
    return found


@pytest.mark.thorough
def test_a_plan_says_what_a_run_allocates(tmp_path):
    """To the byte; but a chunk of prompts is planned 32 tokens wide, while the run's prompts need 16."""
    make_base(tmp_path / "base")
    make_data(tmp_path)
    config = config_of(tmp_path)
    jax.clear_caches()
    gc.collect()
    before, seen = alive(), []

    def look(message: str) -> None:
        if message.startswith("until the end of step 1"):
            gc.collect()
            seen.append((alive(), loaded()))

    train(config, False, look)
    ((between, programs),) = seen
    planned = RunPrograms(config, decoder_of(config, None), *meshes(config))
    resting = sum(device_bytes(planned.state[name]) for name in planned.resting)
    held = [between[device] - before.get(device, 0) for device in range(8)]
    assert held == [resting] * 8
    waits = {program.name: program.beside for program in planned.all()}
    made = plan(config, planned.decoder, topology("cpu:8"))
    own = {one.name: one.total - sum(one.holds[name] for name in waits[one.name]) for one in made.footprints}
    used = {name: programs[PROGRAMS[name]] for name in own}
    assert 0 <= own.pop("prefill") - used.pop("prefill") <= 0.01 * programs["jit__prefill"]
    assert own == used
    assert own["forward and backward"] > 10 * own["cast"] > 0
