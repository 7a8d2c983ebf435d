"""Device meshes, and the one table that maps logical axes of arrays to mesh axes."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rrm_jax.errors import RrmError
from rrm_jax.models.params import ParamSpec

AXES = ("data", "fsdp", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "lookup_batch": ("data",),  # the batch of embeddings while "embed" takes the fsdp axis
    # parameters (and the activations that keep their names)
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "norm": (),
    "rank": (),  # of an adapter: too few to split
    "layers": (),
}


class MeshError(RrmError):
    """A mesh that does not fit the devices, or an array that does not fit the mesh."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; one of them may be −1: all that remain."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


def make_mesh(shape: MeshShape = MeshShape(), devices: Any = None) -> Mesh:
    """A `data × fsdp × tensor` mesh over `devices` (default: all). Raises MeshError with the device count."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(shape, len(devices))
    types = (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # sizes that are no products of a TPU slice's dimensions, 8 × 2 of 4 × 4: one is split
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=types)


def mesh_sizes(shape: MeshShape, devices: int) -> tuple[int, int, int]:
    """Of each axis, over so many devices. Raises MeshError."""
    sizes = [shape.data, shape.fsdp, shape.tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise MeshError(
            f"mesh data={shape.data}, fsdp={shape.fsdp}, tensor={shape.tensor}: sizes are ≥ 1, and one may be -1"
        )
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if int(np.prod(sizes)) != devices:
        raise MeshError(
            f"mesh data={shape.data}, fsdp={shape.fsdp}, tensor={shape.tensor} does not fit {devices} device(s)"
        )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """Of the devices that a mesh has, or that an abstract one stands for."""
    if isinstance(mesh, AbstractMesh):
        return mesh.abstract_device.platform if mesh.abstract_device is not None else jax.default_backend()
    return mesh.devices.flat[0].platform


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axes, one per dimension (None: replicated) → PartitionSpec, by `RULES`.

    Raises MeshError naming both logical axes when two of them would take the same mesh axis.
    """
    taken: dict[str, str] = {}
    entries = []
    for axis in axes:
        if axis is None:
            entries.append(None)
            continue
        if axis not in RULES:
            raise MeshError(f"logical axis {axis!r} has no rule; known: {', '.join(RULES)}")
        for mesh_axis in RULES[axis]:
            if mesh_axis in taken:
                raise MeshError(
                    f"logical axes {taken[mesh_axis]!r} and {axis!r} of one array {axes} both map to mesh axis "
                    f"{mesh_axis!r}"
                )
            taken[mesh_axis] = axis
        names = RULES[axis]
        entries.append(None if not names else names[0] if len(names) == 1 else names)
    return PartitionSpec(*entries)


def param_sharding(mesh: Mesh, spec: ParamSpec) -> NamedSharding:
    """Where a parameter lives. Raises MeshError naming the parameter and axis when the mesh does not divide it."""
    for size, axis in zip(spec.shape, spec.axes, strict=True):
        if axis is None:
            continue
        ways = int(np.prod([mesh.shape[name] for name in RULES[axis]], dtype=int))
        if size % ways:
            raise MeshError(
                f"{spec.hf}: axis {axis!r} of size {size} cannot be split {ways} ways over mesh axis "
                f"{'×'.join(RULES[axis])}; choose a mesh size that divides it"
            )
    return NamedSharding(mesh, partition_spec(spec.axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays whose leading axis is the batch."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
