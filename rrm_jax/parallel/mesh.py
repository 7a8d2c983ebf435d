"""Device meshes, and the one table that maps logical axes of arrays to mesh axes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rrm_jax.errors import RrmError
from rrm_jax.models.params import ParamSpec

AXES = ("data", "fsdp", "tensor")
_TYPES = (AxisType.Auto,) * 3

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
    """A `data × fsdp × tensor` mesh over `devices` (default: all).

    Of several TPU slices every one has its part of `data`, so that fsdp and tensor stay on the links within a slice.
    Raises MeshError with the device count, or where `data` is not a multiple of the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = _slices(devices)
    sizes = mesh_sizes(shape, len(devices), len(slices))
    return Mesh(_laid_out(sizes, devices, slices), AXES, axis_types=_TYPES)


def relaid(mesh: Mesh, shape: MeshShape) -> Mesh:
    """A mesh of another shape over the same devices in the same order, so that one program may take arrays of the one
    and give arrays of the other: JAX refuses that for two orders. Raises MeshError as `make_mesh` does."""
    sizes = mesh_sizes(shape, mesh.size, len(_slices(mesh.devices.flat)))
    return Mesh(mesh.devices.reshape(sizes), AXES, axis_types=_TYPES)


def _slices(devices: Any) -> list[int]:
    """Indices of the TPU slices that the devices are of. JAX calls hosts with GPUs slices too: those share a network
    that any axis may go across."""
    return sorted({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})


def _laid_out(sizes: tuple[int, int, int], devices: list[Any], slices: list[int]) -> np.ndarray:
    if len(slices) == 1:
        return _split_if_need_be(functools.partial(mesh_utils.create_device_mesh, sizes, devices))
    counts = [sum(device.slice_index == one for device in devices) for one in slices]
    if len(set(counts)) > 1:
        raise MeshError(f"a mesh over {len(slices)} slices has as many devices of each, not {counts}")
    within, across = (sizes[0] // len(slices), *sizes[1:]), (len(slices), 1, 1)
    return _split_if_need_be(functools.partial(mesh_utils.create_hybrid_device_mesh, within, across, devices))


def _split_if_need_be(arranged: Callable[..., np.ndarray]) -> np.ndarray:
    try:
        return arranged()
    except NotImplementedError:  # sizes that are no products of a TPU slice's dimensions, 8 × 2 of 4 × 4: one is split
        return arranged(allow_split_physical_axes=True)


def mesh_sizes(shape: MeshShape, devices: int, slices: int = 1) -> tuple[int, int, int]:
    """Of each axis, over so many devices, which are of so many TPU slices. Raises MeshError."""
    told = f"mesh data={shape.data}, fsdp={shape.fsdp}, tensor={shape.tensor}"
    sizes = [shape.data, shape.fsdp, shape.tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise MeshError(f"{told}: sizes are ≥ 1, and one may be -1")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if int(np.prod(sizes)) != devices:
        raise MeshError(f"{told} does not fit {devices} device(s)")
    data, fsdp, tensor = sizes
    if data % slices:
        raise MeshError(
            f"{told}: the devices are of {slices} slices, which no links join, and only data goes across; make it a "
            f"multiple of {slices}"
        )
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
    """A copy on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())
