"""Meshes and the rules table: what is placed where, and what is refused."""

import re

import jax
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
