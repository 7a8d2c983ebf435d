"""Meshes and the rules table: what is placed where, and what is refused."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rrm_jax.models.params import is_spec, named_specs, param_specs
from rrm_jax.parallel.mesh import (
    AXES,
    RULES,
    MeshError,
    MeshShape,
    batch_sharding,
    make_mesh,
    param_sharding,
    partition_spec,
    relaid,
    replicated,
)
from rrm_jax.testing import tiny_config


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (MeshShape(), (1, 8, 1)),
        (MeshShape(8, 1, 1), (8, 1, 1)),
        (MeshShape(2, -1, 2), (2, 2, 2)),
        (MeshShape(-1, 2, 4), (1, 2, 4)),
    ],
)
def test_mesh_sizes(shape, sizes):
    mesh = make_mesh(shape)
    assert tuple(mesh.shape.items()) == tuple(zip(AXES, sizes, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())


def test_a_mesh_over_some_devices():
    mesh = make_mesh(MeshShape(tensor=2), devices=jax.devices()[2:4])
    assert set(mesh.devices.flat) == set(jax.devices()[2:4])
    assert mesh.shape["tensor"] == 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(3, 1, 1), "data=3, fsdp=1, tensor=1 does not fit 8 device(s)"),
        (MeshShape(3, -1, 1), "data=3, fsdp=-1, tensor=1 does not fit 8 device(s)"),
        (MeshShape(16, 1, 1), "data=16, fsdp=1, tensor=1 does not fit 8 device(s)"),
        (MeshShape(-1, -1, 1), "sizes are ≥ 1, and one may be -1"),
        (MeshShape(0, -1, 1), "sizes are ≥ 1, and one may be -1"),
        (MeshShape(-2, 1, 1), "sizes are ≥ 1, and one may be -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(MeshError, match=re.escape(message)):
        make_mesh(shape)


@dataclasses.dataclass(frozen=True)
class Chip:
    """In place of a TPU's device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    process_index: int = 0
    core_on_chip: int = 0


def chips(slices: int, x: int, y: int, **facts: Any) -> list[Chip]:
    """Of slices of x × y, in an order that mixes the slices."""
    made = [Chip(0, at, (i, j, 0), **facts) for j in range(y) for i in range(x) for at in range(slices)]
    return [dataclasses.replace(chip, id=at) for at, chip in enumerate(made)]


@pytest.fixture
def of_stand_ins(monkeypatch):
    """A mesh is its grid of devices."""
    monkeypatch.setattr("rrm_jax.parallel.mesh.Mesh", lambda grid, axes, axis_types: grid)


@pytest.mark.parametrize("shape", [MeshShape(2, 2, 2), MeshShape(2, -1, 1), MeshShape(-1, 1, 4), MeshShape(4, 1, 2)])
def test_data_goes_across_slices_and_nothing_else_does(of_stand_ins, shape):
    devices = chips(2, 2, 2)
    grid: Any = make_mesh(shape, devices)
    assert {chip.id for chip in grid.flat} == set(range(8))
    half = grid.shape[0] // 2
    for at, part in enumerate((grid[:half], grid[half:])):
        assert {chip.slice_index for chip in part.flat} == {at}
        for one, two in part.reshape(-1, 2) if part.shape[2] == 2 else ():  # pairs along tensor are joined by a link
            assert sum(abs(a - b) for a, b in zip(one.coords, two.coords, strict=True)) == 1


def test_meshes_over_slices_that_do_not_fit_are_refused(of_stand_ins):
    devices = chips(2, 2, 2)
    for shape in (MeshShape(), MeshShape(1, 4, 2)):
        with pytest.raises(
            MeshError, match=r"data=1, .* of 2 slices, .*only data goes across; make it a multiple of 2"
        ):
            make_mesh(shape, devices)
    uneven = [chip for chip in chips(2, 2, 2) if chip.slice_index == 0 or chip.coords[1] == 0]
    with pytest.raises(MeshError, match=r"has as many devices of each, not \[4, 2\]"):
        make_mesh(MeshShape(2, -1, 1), uneven)
    with pytest.raises(MeshError, match="does not fit 8 device"):
        make_mesh(MeshShape(2, 3, 1), devices)


def test_gpus_of_several_hosts_are_laid_out_host_by_host(of_stand_ins):
    """JAX numbers hosts as slices; fsdp may go across them."""
    devices = chips(2, 2, 2, platform="gpu", device_kind="NVIDIA H100")
    grid: Any = make_mesh(MeshShape(1, 8, 1), devices)
    assert [chip.id for chip in grid.flat] == list(range(8))


def test_a_mesh_of_another_shape_keeps_the_order_of_its_devices():
    mesh = make_mesh(MeshShape(2, 4, 1), list(reversed(jax.devices())))
    again = relaid(mesh, MeshShape(4, 1, -1))
    assert dict(again.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert again.devices.ravel().tolist() == mesh.devices.ravel().tolist()
    with pytest.raises(MeshError, match="data=3, fsdp=1, tensor=1 does not fit 8 device"):
        relaid(mesh, MeshShape(3, 1, 1))
    moved = jax.jit(lambda x: x + 0, out_shardings=batch_sharding(again))(
        jax.device_put(np.arange(16.0), batch_sharding(mesh))
    )
    assert moved.sharding.mesh.shape["tensor"] == 2
    np.testing.assert_array_equal(moved, np.arange(16.0))


def test_logical_axes_become_mesh_axes():
    assert partition_spec(("vocab", "embed")) == P("tensor", "fsdp")
    assert partition_spec(("batch", None, "heads", "head")) == P(("data", "fsdp"), None, "tensor", None)
    assert partition_spec(()) == P()
    assert {axis for names in RULES.values() for axis in names} <= set(AXES)


@pytest.mark.parametrize(
    ("axes", "both", "mesh_axis"),
    [
        (("batch", "embed"), ("batch", "embed"), "fsdp"),
        (("heads", None, "mlp"), ("heads", "mlp"), "tensor"),
        (("vocab", "vocab"), ("vocab", "vocab"), "tensor"),
    ],
)
def test_two_logical_axes_on_one_mesh_axis_are_refused_by_name(axes, both, mesh_axis):
    message = f"logical axes '{both[0]}' and '{both[1]}' .* both map to mesh axis '{mesh_axis}'"
    with pytest.raises(MeshError, match=message):
        partition_spec(axes)


def test_an_unknown_logical_axis_is_refused():
    with pytest.raises(MeshError, match="'expert' has no rule; known: batch, "):
        partition_spec(("expert",))


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_split_over_fsdp_and_tensor_or_is_a_vector(tied):
    mesh = make_mesh(MeshShape(2, 2, 2))
    specs = param_specs(tiny_config(tied_embeddings=tied), stacked=True)
    for spec in jax.tree.leaves(specs, is_leaf=is_spec):
        local = param_sharding(mesh, spec).shard_shape(spec.shape)
        ways = {axis: 1 for axis in AXES} | {"fsdp": 2, "tensor": 2}
        expected = ways["fsdp"] * ways["tensor"] if "embed" in spec.axes else 2 if spec.hf.endswith("bias") else 1
        size = 1
        for whole, part in zip(spec.shape, local, strict=True):
            size *= whole // part
        assert size == expected, spec


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (
            tiny_config(),
            MeshShape(1, 2, 4),
            "self_attn.k_proj.weight: axis 'kv_heads' of size 2 cannot be split 4 ways over mesh axis tensor",
        ),
        (tiny_config(vocab_size=63), MeshShape(4, 1, 2), "embed_tokens.weight: axis 'vocab' of size 63 .* 2 ways"),
        (tiny_config(hidden_size=36), MeshShape(1, 8, 1), "axis 'embed' of size 36 cannot be split 8 ways .* fsdp"),
        (tiny_config(intermediate_size=62), MeshShape(2, 1, 4), "mlp.*_proj.weight: axis 'mlp' of size 62"),
    ],
)
def test_a_size_that_the_mesh_does_not_divide_is_refused_by_name(config, shape, message):
    mesh = make_mesh(shape)
    refused = []
    for _, spec in named_specs(config):
        try:
            param_sharding(mesh, spec)
        except MeshError as error:
            refused.append(str(error))
    assert any(re.search(message, error) for error in refused), refused


def test_batch_and_replicated_placements():
    mesh = make_mesh(MeshShape(2, 2, 2))
    assert batch_sharding(mesh).shard_shape((8, 5)) == (2, 5)
    assert replicated(mesh).shard_shape((8, 5)) == (8, 5)
