"""A search: what it proposes, and what it makes of a compiler's verdict."""

import dataclasses

import pytest

from rrm_jax.config import load_config
from rrm_jax.errors import RrmError
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.planning import report, search
from rrm_jax.planning.plan import Assumptions, Plan
from rrm_jax.planning.topology import Topology, topology
from rrm_jax.training.config import TrainConfig

SEVEN = PAPER_MODELS["7b"]


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(search, "_SLOTS", (64, 256))
    monkeypatch.setattr(search, "_ROWS", (1,))


def sixteen() -> Topology:
    """v6e:4x4, as if its compiler were there: `search.plan` is replaced by what the test says."""
    described = topology("v6e:4x4", compiling=False)
    return dataclasses.replace(described, devices=[None] * 16, compiler="a test")


def says(monkeypatch, taken) -> list[str]:
    """Makes `taken(estimate, name)` the bytes that a compiled program holds; returns the meshes that are compiled."""
    asked = []

    def compiled(config, decoder, devices, assumed) -> Plan:
        estimate = search.analytic_plan(config, decoder, devices, assumed)
        asked.append((estimate.mesh["tensor"], estimate.rollout_mesh["tensor"], estimate.slots))
        footprints = tuple(
            dataclasses.replace(one, holds={"temporaries": taken(estimate, one)}) for one in estimate.footprints
        )
        return dataclasses.replace(estimate, footprints=footprints)

    monkeypatch.setattr(search, "plan", compiled)
    return asked


def found(compiling: int, said: list[str], devices: Topology) -> tuple[list[search.Proposal], search.Proposal]:
    return search.search(load_config(TrainConfig, "rrm_7b.yaml"), SEVEN, devices, Assumptions(), compiling, said.append)


def test_what_is_proposed_can_be_given_as_settings():
    given = load_config(TrainConfig, "rrm_7b.yaml", ["rollout.mesh.tensor=2"])
    layouts = set()
    for changes, config in search.candidates(given, SEVEN, topology("2xv6e:4x4", compiling=False)):
        text = str(search.Proposal(changes, None)).split(" ")
        assert load_config(TrainConfig, "rrm_7b.yaml", text) == config
        sampling = config.rollout.mesh or config.mesh
        assert sampling.tensor >= config.mesh.tensor
        assert sampling.data * sampling.fsdp * sampling.tensor == 32
        assert sampling.data % 2 == 0  # of two slices each has its part
        layouts.add((config.mesh.tensor, sampling.tensor))
    assert layouts == {(one, other) for one in (1, 2, 4) for other in (1, 2, 4) if other >= one}
    apart = load_config(TrainConfig, "rrm_7b.yaml", ["rollout.devices=4", "rollout.mesh.tensor=2"])
    every = list(search.candidates(apart, SEVEN, topology("v6e:4x4", compiling=False)))
    assert every
    assert all(config.rollout.mesh == apart.rollout.mesh for _, config in every)
    supervised = load_config(TrainConfig, "warm_start.yaml")
    every = list(search.candidates(supervised, SEVEN, topology("v6e:4x4", compiling=False)))
    assert every
    assert all(config.rollout == supervised.rollout for _, config in every)


def test_the_first_that_fits_is_taken(monkeypatch):
    asked, said, devices = says(monkeypatch, lambda estimate, one: one.total), [], sixteen()
    tried, best = found(2, said, devices)
    quickest = search.ranked(load_config(TrainConfig, "rrm_7b.yaml"), SEVEN, devices)[0]
    assert tried == [best]
    assert best.changes == quickest[0]
    assert len(asked) == 1
    assert best.plan is best.compiled
    assert "yes" in [*report.proposal_lines(tried)][-1]


def test_after_one_that_does_not_fit_comes_one_that_takes_less_there(monkeypatch):
    """What samples 256 rows, twice as large as by arithmetic, does not fit; fewer rows do."""
    twice = lambda _, one: one.total * (2 if one.name in ("prefill", "decode") else 1)  # noqa: E731
    asked, said, devices = says(monkeypatch, twice), [], sixteen()
    tried, best = found(3, said, devices)
    assert [one.compiled.fits for one in tried] == [False] * (len(tried) - 1) + [True]
    assert len(asked) == len(tried) == 2
    for name in [one.name for one in tried[0].compiled.footprints if one.total > devices.usable]:
        before, after = (next(one.total for one in x.estimate.footprints if one.name == name) for x in (tried[0], best))
        assert after < before
    assert "does not fit" in said[1]
    assert ["**no**" in line for line in report.proposal_lines(tried)][2:] == [True, False]


def test_where_nothing_fits_the_last_is_given(monkeypatch):
    says(monkeypatch, lambda estimate, one: 2**40)
    tried, best = found(2, [], sixteen())
    assert len(tried) == 2
    assert best is tried[-1]
    assert not best.plan.fits


def test_without_a_compiler_three_are_shown():
    tried, best = found(0, [], topology("v6e:4x4", compiling=False))
    assert tried[0] is best
    assert len(tried) == 3
    assert all(one.compiled is None for one in tried)
    with pytest.raises(RrmError, match="of CPUs there is no data sheet"):
        found(0, [], topology("cpu:8", compiling=False))
