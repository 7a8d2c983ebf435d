"""Plans of a tiny run on 8 CPU devices that stand in for a slice: what they say against what a learner really holds."""

import dataclasses
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rrm_jax.config import load_config
from rrm_jax.errors import RrmError
from rrm_jax.models.params import is_spec, param_specs
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.parallel.mesh import MeshError
from rrm_jax.planning import report, search
from rrm_jax.planning.plan import Assumptions, Plan, decoder_of, plan, require_compiler
from rrm_jax.planning.topology import Topology, topology
from rrm_jax.testing import tiny_config
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.learner import Learner

from ..training.world import make_base, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")


def slice_of_cpus() -> Topology:
    described = topology("v5p:2x2x2", compiling=False)
    return dataclasses.replace(described, devices=jax.devices(), compiler="XLA for CPUs")


def config_of(home: Path, fsdp: int = 4, tensor: int = 2, **changes) -> TrainConfig:
    changes = {"model__path": str(home / "base"), "model__remat": "full", **changes}
    tree = settings(home, "run", **changes)
    return TrainConfig.model_validate(tree | {"mesh": {"data": 1, "fsdp": fsdp, "tensor": tensor}})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("planning")
    make_base(directory / "base")
    return directory


@pytest.fixture(scope="module")
def tiny(home) -> Plan:
    config = config_of(home, model__compute_dtype="bfloat16")
    return plan(config, decoder_of(config, None), slice_of_cpus())


def held(tree) -> set[int]:
    """Bytes on each device of a tree of arrays: one number, if all devices hold as much."""
    sizes = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            sizes[shard.device] += shard.data.nbytes
    return set(sizes.values())


def held_by(plan: Plan) -> dict[str, int]:
    return {name: size for one in plan.footprints for name, size in one.holds.items()}


def test_state_is_what_a_learner_holds(home, tiny):
    learner = Learner(config_of(home, model__compute_dtype="bfloat16"))
    by_name = held_by(tiny)
    assert held(learner.params) == {by_name["parameters"]} == {by_name["gradients"]}
    assert held(learner._opt_state) == {by_name["optimiser"]}
    assert held(learner.working()) == {by_name["working copy"]} == {by_name["reference"]}
    assert held(learner.sampler()._params) == {by_name["sampler's weights"]}


def test_every_program_of_a_step_is_there_and_says_what_waits_beside_it(tiny):
    names = [one.name for one in tiny.footprints]
    assert names == ["cast", "hand-over", "prefill", "decode", "log-probs", "forward and backward", "apply"]
    by_name = {one.name: one.holds for one in tiny.footprints}
    everywhere = {"parameters", "optimiser", "reference", "sampler's weights"}
    assert all(everywhere <= set(holds) for holds in by_name.values())
    assert {name for name, holds in by_name.items() if "gradients" in holds} == {"forward and backward", "apply"}
    assert {name for name, holds in by_name.items() if "rows' cache" in holds} == {"prefill", "decode"}
    assert "working copy" not in by_name["apply"]  # it is let go before
    assert tiny.fits
    assert all(one.total == sum(one.holds.values()) > 0 for one in tiny.footprints)


def test_weights_are_gathered_over_fsdp_alone(tiny):
    by_name = {one.name: one for one in tiny.footprints}
    gathers = [x for x in by_name["hand-over"].exchanges if x.kind == "all-gather"]
    split = [spec for spec in jax.tree.leaves(param_specs(tiny.decoder, True), is_leaf=is_spec) if "embed" in spec.axes]
    numbers = sum(math.prod(spec.shape) for spec in split) / 2  # on one of two devices along tensor
    assert {x.axes for x in gathers} == {"fsdp"}
    assert sum(x.sent for x in gathers) == 4 * numbers * 3 / 4  # a CPU exchanges bfloat16 as float32


def test_rollouts_on_another_layout_are_planned_on_it(home, tiny):
    """Trained on fsdp 8, sampled on data 4 × tensor 2: what a learner holds, and no gathering to read weights."""
    other = {"data": 4, "fsdp": 1, "tensor": 2}
    config = config_of(home, 8, 1, model__compute_dtype="bfloat16", rollout__mesh=other)
    made = plan(config, decoder_of(config, None), slice_of_cpus(), only=("hand-over", "decode", "apply"))
    learner, by_name, holds = Learner(config), {one.name: one for one in made.footprints}, held_by(made)
    assert held(learner.params) == {holds["parameters"]}
    assert held(learner.sampler()._params) == {holds["sampler's weights"]} == {held_by(tiny)["sampler's weights"]}
    assert made.rollout_mesh == other
    assert made.mesh["fsdp"] == 8
    alike = next(one for one in tiny.footprints if one.name == "decode")  # on fsdp 4 × tensor 2
    renamed = tuple(dataclasses.replace(x, axes=x.axes.replace("fsdp", "data")) for x in alike.exchanges)
    assert by_name["decode"].exchanges == renamed
    assert by_name["hand-over"].exchanges
    assert "mesh data 1 × fsdp 8 × tensor 1, to sample data 4 × fsdp 1 × tensor 2" in "\n".join(report.lines(made))


def test_devices_that_only_sample_hold_the_sampler_alone(home):
    """By arithmetic; a compiled plan is refused. Six train, two sample."""
    apart = {"rollout__devices": 2, "rollout__mesh": {"tensor": 2}, "model__compute_dtype": "bfloat16"}
    config, decoder = config_of(home, 6, 1, **apart), tiny_config(hidden_size=48)
    with pytest.raises(RrmError, match=r"rollout\.devices: .* not for some; give --analytic"):
        plan(config, decoder, slice_of_cpus())
    made = search.analytic_plan(config, decoder, slice_of_cpus())
    by_name = {one.name: set(one.holds) for one in made.footprints}
    sampler = {"sampler's weights", "rows' cache", "prompts' cache"}
    assert by_name["prefill"] == by_name["decode"] == sampler | {"temporaries"}
    assert all(not sampler & by_name[name] for name in by_name if name not in ("prefill", "decode"))
    copied = next(x for one in made.footprints if one.name == "hand-over" for x in one.exchanges if x.kind == "copy")
    assert copied.sent == pytest.approx(2 * decoder.num_parameters / 6, rel=0.02)  # one whole copy, from six; no norms
    phases = {phase.name: phase.seconds(made.time.efficiency) for phase in made.time.phases}
    sampling = phases["prefill"] + phases["decode"]
    assert made.time.seconds == pytest.approx(sum(phases.values()))
    ahead = config_of(home, 6, 1, **apart, rollout__asynchronous=True, grpo__importance_cap=2.0)
    at_once = search.analytic_plan(ahead, decoder, slice_of_cpus()).time.seconds
    assert at_once == pytest.approx(max(sampling, sum(phases.values()) - sampling))
    for devices, fsdp, match in ((8, 1, "leaves none of 8 devices to train"), (5, 3, "does not fit 5 device")):
        refused = config_of(home, fsdp, 1, rollout__devices=devices, rollout__mesh={"tensor": 2})
        with pytest.raises(RrmError, match=match):
            search.analytic_plan(refused, decoder, slice_of_cpus())
    odd = config_of(home, 3, 1, rollout__devices=4, rollout__mesh={"tensor": 2})
    with pytest.raises(MeshError, match="does not divide the 3 training devices"):
        search.analytic_plan(odd, decoder, dataclasses.replace(slice_of_cpus(), count=7))


def test_between_slices_go_sums_of_gradients_and_nothing_else():
    """Two slices of four chips: what a device sends to the other slice in one update, by hand."""
    config = load_config(TrainConfig, "rrm_7b.yaml", ["mesh.data=2"])
    made = search.analytic_plan(config, PAPER_MODELS["7b"], topology("2xv5p:2x2x1", compiling=False))
    across = [(one.name, x) for one in made.footprints for x in one.exchanges if x.axes == "slices"]
    ((name, exchange),) = across
    assert name == "forward and backward"
    assert exchange.sent == pytest.approx(2 * 7_615_616_512 / 4, rel=0.01)  # bfloat16, a fourth each, half of it twice
    with pytest.raises(MeshError, match=r"of 2 slices, .*make it a multiple of 2"):
        search.analytic_plan(
            load_config(TrainConfig, "rrm_7b.yaml"), PAPER_MODELS["7b"], topology("2xv5p:2x2x1", compiling=False)
        )


def test_settings_that_save_memory_do(home):
    """Of the arithmetic plan, whose state is exact."""
    decoder, devices = decoder_of(config_of(home), None), topology("v5p:2x2x2", compiling=False)

    def state(**changes) -> dict[str, int]:
        made = search.analytic_plan(config_of(home, **changes), decoder, devices)
        update = next(one for one in made.footprints if one.name == "forward and backward")
        return dict(update.holds)

    plain = state()
    assert "optimiser" not in state(optimizer__offload=True)
    assert "reference" not in state(grpo__offload_reference=True)
    assert "reference" not in state(grpo__kl_coef=0.0)
    assert state(optimizer__kind="adafactor")["optimiser"] < 0.51 * plain["optimiser"]
    assert state(fsdp=8, tensor=1)["sampler's weights"] > 1.5 * plain["sampler's weights"]
    lora = state(model__lora={"rank": 2}, model__compute_dtype="bfloat16")
    assert lora["frozen model"] > lora["parameters"]
    supervised = state(method="supervised")
    assert set(supervised) == {"parameters", "gradients", "optimiser", "temporaries"}


def test_the_plan_of_adapters_and_of_supervised_training_compile(home):
    lora = config_of(home, model__lora={"rank": 2}, model__compute_dtype="bfloat16")
    made = plan(lora, decoder_of(lora, None), slice_of_cpus(), only=("merge adapters", "forward and backward"))
    assert [one.name for one in made.footprints] == ["merge adapters", "forward and backward"]
    merged = made.footprints[0].holds
    assert merged["merged copy"] == pytest.approx(merged["frozen model"], abs=200)  # a table of the results
    supervised = config_of(home, method="supervised")
    made = plan(supervised, decoder_of(supervised, None), slice_of_cpus())
    assert [one.name for one in made.footprints] == ["forward and backward", "apply"]
    with pytest.raises(RrmError, match=r"no program nonsense in this run; it has forward and backward, apply"):
        plan(supervised, decoder_of(supervised, None), slice_of_cpus(), only=("nonsense",))


def test_the_plan_of_preference_training_compiles(home):
    """A pair is two completions behind one prompt; the reference is scored, and is not there without one."""
    dpo = {"task": "policy", "method": "dpo", "model__compute_dtype": "bfloat16", "policy": {"max_prompt_tokens": 20}}
    dpo |= {"rollout__max_new_tokens": 22, "dpo": {"batch_size": 16}}
    config = config_of(home, **dpo)
    made = plan(config, decoder_of(config, None), slice_of_cpus(), only=("log-probs", "forward and backward"))
    scores, update = made.footprints
    assert made.micro_batch == (8, 64)
    assert scores.holds["reference"] == update.holds["reference"] == update.holds["working copy"]
    assert "working copy" not in scores.holds  # it is let go after an update
    whole = search.analytic_plan(config, made.decoder, slice_of_cpus())
    runs = {phase.name: phase.runs for phase in whole.time.phases}
    assert runs["forward and backward"] == runs["log-probs"] == 2  # 16 pairs, 8 rows of one pair each
    assert whole.time.tokens == 16 * (20 + 2 * 22)
    free = search.analytic_plan(config_of(home, **dpo, dpo__reference_free=True), made.decoder, slice_of_cpus())
    assert [one.name for one in free.footprints] == ["forward and backward", "apply"]
    assert "reference" not in held_by(free)
    judged = "\n".join(report.heading(whole))
    assert "judge" not in judged


def test_the_plan_of_a_policy_says_that_its_judge_is_left_out(home):
    judge = {"model": "anywhere", "idle": "host"}
    config = config_of(home, task="policy", policy={"max_prompt_tokens": 20, "judge": judge})
    made = search.analytic_plan(config, decoder_of(config, None), slice_of_cpus())
    assert "(policy.judge) is left out, its weights, which wait in host memory" in "\n".join(report.heading(made))
    remote = {"model": "anywhere", "backend": "http://localhost:1"}
    config = config_of(home, task="policy", policy={"max_prompt_tokens": 20, "judge": remote})
    made = search.analytic_plan(config, decoder_of(config, None), slice_of_cpus())
    assert "its judge is at a server" in "\n".join(report.heading(made))


def test_a_plan_for_this_machine_has_no_seconds(home):
    config = config_of(home)
    made = search.analytic_plan(config, decoder_of(config, None), topology("cpu:8", compiling=False))
    tiny_slice = search.analytic_plan(config, made.decoder, slice_of_cpus())
    text = "\n".join(report.lines(made))
    assert "Seconds are not estimated" in text
    assert "tokens/s" not in text
    assert not any("as many devices" in change for _, change in report.changes(made, made.peak))
    assert any("as many devices" in change for _, change in report.changes(tiny_slice, tiny_slice.peak))
    assert 8 * made.topology.usable <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with pytest.raises(RrmError, match=r"begun in this process with 8 CPU device\(s\)"):
        topology("cpu:9")


def test_what_does_not_fit_is_said_with_what_to_change(tiny):
    small = dataclasses.replace(
        tiny.topology, accelerator=dataclasses.replace(tiny.topology.accelerator, memory=tiny.peak.total // 2)
    )
    refused = dataclasses.replace(tiny, topology=small)
    assert not refused.fits
    text = "\n".join(report.lines(refused))
    assert f"It does not fit: {tiny.peak.name} takes" in text
    assert "optimizer.moments=int8" in text
    assert "twice as many devices on fsdp (8)" in text
    assert "It fits: " in "\n".join(report.lines(tiny))


def test_a_step_of_rrm_7b_by_hand():
    """720 seconds are not the point: products, bytes and exchanges of an update on 8 H100, from the data sheet."""
    made = search.analytic_plan(
        load_config(TrainConfig, "rrm_7b.yaml"), PAPER_MODELS["7b"], topology("h100:8", compiling=False),
        Assumptions(efficiency=1.0),
    )  # fmt: skip
    phases = {phase.name: phase for phase in made.time.phases}
    layer = 3584 * 3584 + 2 * 3584 * 512 + 3584 * 3584 + 3 * 3584 * 18_944
    row = 28 * layer * 12_288 + 152_064 * 3584 * 9216 + 2 * 28 * 28 * 128 * (12_288 * 12_289 // 2)
    assert phases["forward and backward"].products == pytest.approx(2048 * 8 * row / (8 * 989e12), rel=1e-6)
    assert phases["log-probs"].products == pytest.approx(2 * 2048 * 2 * row / (8 * 989e12), rel=1e-6)
    assert phases["decode"].runs == 2048 * 8192 / 256 / 64
    step = (2 * (7_615_616_512 - 152_064 * 3584) + 57_344 * 32 * (4096 / 16 + 4096)) / 3.35e12
    assert phases["decode"].memory == pytest.approx(2048 * 8192 / 256 * step, rel=1e-3)
    gathered = 2 * (28 * layer + 2 * 152_064 * 3584) * 7 / 8  # once forwards, once to recompute, once to scatter
    assert phases["log-probs"].network == pytest.approx(2 * 256 * gathered / 450e9, rel=1e-6)
    assert made.time.seconds == sum(max(p.products, p.memory, p.network) for p in made.time.phases)


@pytest.mark.parametrize(("name", "model", "slice_", "overrides", "program", "compiled"), [
    ("rrm_7b.yaml", "7b", "v6e:4x4", [], "forward and backward", 6.03),
    ("rrm_7b.yaml", "7b", "v6e:4x4", [], "log-probs", 1.47),
    ("rrm_32b.yaml", "32b", "v5p:4x4x4", [], "forward and backward", 10.38),
    ("rrm_32b.yaml", "32b", "v6e:8x8", ["mesh.tensor=8"], "forward and backward", 9.92),
    ("rrm_32b.yaml", "32b", "v6e:8x8", ["mesh.tensor=8"], "log-probs", 0.66),
])  # fmt: skip
def test_estimated_temporaries_are_near_those_of_compiled_programs(name, model, slice_, overrides, program, compiled):
    """GiB that libtpu 0.0.50.1 said (docs/planning.md): within a tenth."""
    config = load_config(TrainConfig, name, overrides)
    made = search.analytic_plan(config, PAPER_MODELS[model], topology(slice_, compiling=False))
    estimate = next(one for one in made.footprints if one.name == program).holds["temporaries"]
    assert estimate / 2**30 == pytest.approx(compiled, rel=0.1)


def test_the_search_finds_what_fits(monkeypatch):
    monkeypatch.setattr(search, "_SLOTS", (64, 256))
    monkeypatch.setattr(search, "_ROWS", (1,))
    config, decoder = load_config(TrainConfig, "rrm_7b.yaml", ["pack.micro_batch_tokens=12288"]), PAPER_MODELS["7b"]
    devices = topology("v6e:2x4", compiling=False)
    found = search.ranked(config, decoder, devices, Assumptions())
    seconds = [made.time.seconds for _, made in found]
    assert seconds == sorted(seconds)
    assert all(made.peak.total <= 0.9 * devices.usable for _, made in found)
    assert all(math.prod(made.mesh.values()) == 8 for _, made in found)
    changes, best = found[0]
    assert best.config.rollout.batch_size == int(changes["rollout.batch_size"])
    with pytest.raises(RrmError, match=r"nothing fits v5e:2x2: what takes least, .* GiB .*; take more devices"):
        search.ranked(config, decoder, topology("v5e:2x2", compiling=False))


@pytest.mark.parametrize(("name", "match"), [
    ("v5p:4x4", "a slice of v5p is v5p:4x4x4, say"), ("v6e:4x4x4", "a slice of v6e is v6e:4x4, say"),
    ("v6e", "a slice of v6e is"), ("v5p:0x4x4", "a slice of v5p is"), ("v9:4x4", "is not known: give a TPU slice"),
    ("2xh100:8", "only slices of TPUs can be several"), ("0xv5p:4x4x4", "only slices of TPUs can be several"),
    ("tpu7x:4x4", "TPU7x cannot be described yet"), ("h100:many", "GPUs are given by their number, as h100:8"),
    ("cpu:4x4", "a CPU's devices are given by their number, as cpu:8"),
])  # fmt: skip
def test_topologies_that_there_are_none_of(name, match):
    with pytest.raises(RrmError, match=match):
        topology(name)


def test_without_a_compiler_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RrmError, match=r"no compiler for v5p:2x2x1 here: pip install 'rrm-jax\[tpu\]', or --analytic"):
        require_compiler(topology("v5p:2x2x1"))
    with pytest.raises(RrmError, match=r"pip install 'rrm-jax\[cuda13\]'"):
        require_compiler(topology("h200:8"))
    with pytest.raises(RrmError, match="no description of l40s"):
        require_compiler(topology("l40s:8"))


def test_what_cannot_be_planned_is_refused(home):
    config = config_of(home)
    with pytest.raises(MeshError, match=r"'tensor'|does not fit 16 device"):
        search.analytic_plan(config, tiny_config(), topology("v6e:4x4", compiling=False))
    split = config_of(home, fsdp=2, tensor=4)
    with pytest.raises(MeshError, match=r"axis 'kv_heads' of size 2 cannot be split 4 ways"):
        search.analytic_plan(split, tiny_config(), topology("v6e:2x4", compiling=False))
    with pytest.raises(RrmError, match=r"--model '9b' is not one of 1.5b, 7b"):
        decoder_of(config, "9b")
    with pytest.raises(RrmError, match=r"config.json is not there; say which model it will be: --model"):
        decoder_of(load_config(TrainConfig, "rrm_7b.yaml"), None)
    with pytest.raises(RrmError, match="no share of the roofline"):
        Assumptions(efficiency=0)
    with pytest.raises(RrmError, match="262 together by the configuration"):
        search.analytic_plan(config, decoder_of(config, None), slice_of_cpus(), Assumptions(prompt_tokens=10**6))


def test_with_libtpu_the_compiler_says_it():
    """A few seconds where libtpu is installed: two layers of the 7B model on four chips."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (pip install 'rrm-jax[tpu]')")
    code = """if True:
        import dataclasses
        from rrm_jax.config import load_config
        from rrm_jax.models.presets import PAPER_MODELS
        from rrm_jax.planning.plan import plan
        from rrm_jax.planning.topology import topology
        from rrm_jax.training.config import TrainConfig
        from rrm_jax.parallel.mesh import MeshShape, make_mesh
        # 8 × 2 of 4 × 4 chips: a dimension of the slice is split between two axes.
        assert dict(make_mesh(MeshShape(1, -1, 2), topology("v6e:4x4").devices).shape)["fsdp"] == 8
        decoder = dataclasses.replace(PAPER_MODELS["7b"], num_layers=2)
        config = load_config(TrainConfig, "rrm_7b.yaml", ["mesh.tensor=2", "rollout.batch_size=32"])
        made = plan(config, decoder, topology("v5p:2x2x1"), only=("log-probs", "apply"))
        assert made.fits and made.attention == "splash" and "libtpu" in made.how
        scores, apply = made.footprints
        assert scores.holds["temporaries"] > 2**28 and apply.holds["temporaries"] < 2**24
        assert {x.axes for x in scores.exchanges} >= {"fsdp", "tensor"}
        # Two slices: log-probs need nothing of the other one.
        decoder, two = dataclasses.replace(decoder, num_layers=1), topology("2xv5p:2x2x1")
        made = plan(config.model_copy(update={"mesh": config.mesh.model_copy(update={"data": 2})}), decoder, two,
                    only=("log-probs",))
        assert made.mesh == {"data": 2, "fsdp": 2, "tensor": 2}
        assert {x.axes for x in made.footprints[0].exchanges} >= {"fsdp", "tensor"}
        assert not any("slices" in x.axes or "data" in x.axes for x in made.footprints[0].exchanges if x.sent > 2**20)
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=500)


def test_names_of_state_have_a_column(tiny):
    shown = {name for names in report._COLUMNS.values() for name in names}
    assert {name for one in tiny.footprints for name in one.holds} <= shown
    rows = report.memory_rows(tiny)
    together = rows[0].index("together")
    for row, one in zip(rows[1:], tiny.footprints, strict=True):
        assert float(row[together]) == pytest.approx(one.total / 2**30, abs=0.006)
    assert np.isfinite(tiny.time.seconds)
