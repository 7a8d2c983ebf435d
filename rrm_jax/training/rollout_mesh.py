"""Where rollouts are drawn: where training is, on the same devices in another layout, or on devices of their own."""

import collections
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from rrm_jax.errors import RrmError
from rrm_jax.models.decoder import Params
from rrm_jax.parallel.mesh import MeshError, MeshShape, make_mesh, relaid
from rrm_jax.sampling.engine import weight_shardings
from rrm_jax.training.config import MeshConfig, TrainConfig
from rrm_jax.training.learner_programs import LearnerPrograms


def meshes(config: TrainConfig, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
    """The training mesh and the rollouts' over `devices` (default: all); one and the same where nothing else is asked.

    Raises MeshError where a mesh does not fit its devices, RrmError where a process would have none of either kind.
    """
    devices, rollout = list(jax.devices() if devices is None else devices), config.rollout
    if rollout.devices:
        training, sampling = _apart(devices, rollout.devices)
        return make_mesh(_shape(config.mesh), training), make_mesh(_shape(rollout.mesh or MeshConfig()), sampling)
    mesh = make_mesh(_shape(config.mesh), devices)
    return mesh, mesh if rollout.mesh is None else relaid(mesh, _shape(rollout.mesh))


def _shape(mesh: MeshConfig) -> MeshShape:
    return MeshShape(**mesh.model_dump())


def _apart(devices: Sequence[Any], sampling: int) -> tuple[list[Any], list[Any]]:
    """Devices that train, and those that sample: the last of each process, as many of each."""
    of_process: dict[int, list[Any]] = collections.defaultdict(list)
    for device in devices:
        of_process[device.process_index].append(device)
    each, odd = divmod(sampling, len(of_process))
    least = min(map(len, of_process.values()))
    if odd or each >= least:
        raise RrmError(
            f"rollout.devices={sampling}: each of {len(of_process)} process(es) gives as many devices to sampling, and "
            f"keeps one for training at least; the smallest has {least}, so give a multiple of {len(of_process)} up to "
            f"{(least - 1) * len(of_process)}, or 0"
        )
    parts = [(own[:-each], own[-each:]) for own in of_process.values()]
    return [x for own, _ in parts for x in own], [x for _, own in parts for x in own]


class HandOver:
    """Brings weights from the training mesh to a mesh of other devices, as a sampler keeps them; never by a host.

    A program on the training mesh gathers what one layer has over fsdp, split as sampling splits it, and each sampling
    device copies its part from a training device of the same process. One layer is gathered at a time. (`device_put`
    between the meshes would copy by the host, as their parts differ.)

    Raises MeshError where the training devices cannot be split as the sampler's weights are.
    """

    def __init__(self, programs: LearnerPrograms, mesh: Mesh):
        check_divides(programs.mesh, mesh)
        parts = programs.mesh.devices.reshape(-1, 1, mesh.shape["tensor"])
        between = Mesh(parts, mesh.axis_names, axis_types=mesh.axis_types)
        check_parts_are_near(between, mesh)
        dtype = programs.options.dtype
        self._mesh, self._layers = programs.mesh, programs.decoder.num_layers
        self._to = weight_shardings(programs.decoder, mesh, dtype)
        gathered = weight_shardings(programs.decoder, between, dtype)

        def layer(layers, at):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, at, keepdims=False).astype(dtype), layers)

        def tables(tables):
            return jax.tree.map(lambda x: x.astype(dtype), tables)

        self.layer = jax.jit(layer, out_shardings=gathered["layers"][0])
        self.tables = jax.jit(tables, out_shardings=_without_layers(gathered))

    def __call__(self, params: Params) -> Params:
        """Stacked parameters of the training mesh → a list of layers on the other."""
        with jax.set_mesh(self._mesh):
            moved = _copied(self.tables(_without_layers(params)), _without_layers(self._to))
            layers = []
            for at in range(self._layers):
                layers.append(_copied(self.layer(params["layers"], np.int32(at)), self._to["layers"][at]))
                jax.block_until_ready(layers[-1])  # or all layers are gathered before the first has gone
        return {**moved, "layers": layers}


def _without_layers(params: Params) -> Params:
    return {name: x for name, x in params.items() if name != "layers"}


def check_divides(training: Mesh | AbstractMesh, sampling: Mesh | AbstractMesh) -> None:
    """Raises MeshError where the training devices cannot gather as many parts as sampling splits the weights into."""
    if training.size % sampling.shape["tensor"]:
        raise MeshError(
            f"rollout.mesh.tensor={sampling.shape['tensor']} does not divide the {training.size} training devices, "
            "each of which gathers one part of the weights for the sampler"
        )


def check_parts_are_near(between: Mesh, mesh: Mesh) -> None:
    """Each sampling device's part of the weights has to be on a training device of its process."""
    parts = [collections.defaultdict(set), collections.defaultdict(set)]
    for part, one in zip(parts, (between, mesh), strict=True):
        for (_, _, tensor), device in np.ndenumerate(one.devices):
            part[device.process_index].add(tensor)
    there, wanted = parts
    for process, tensors in wanted.items():
        if missing := tensors - there[process]:
            raise MeshError(
                f"rollout.mesh.tensor={mesh.shape['tensor']}: process {process} samples with part "
                f"{min(missing)} of the weights, which none of its training devices gathers; make tensor a divisor of "
                "each process's training devices"
            )


def _copied(tree: Any, to: Any) -> Any:
    """From device to device; the copies of a part take turns among the devices that have it."""

    def one(x: jax.Array, at: NamedSharding) -> jax.Array:
        parts: dict[Hashable, list[jax.Array]] = collections.defaultdict(list)
        for shard in x.addressable_shards:
            parts[_place(shard.index)].append(shard.data)
        turns = {place: itertools.cycle(part) for place, part in parts.items()}
        wanted = at.addressable_devices_indices_map(x.shape)
        copies = jax.device_put([next(turns[_place(index)]) for index in wanted.values()], list(wanted))
        return jax.make_array_from_single_device_arrays(x.shape, at, copies)

    return jax.tree.map(one, tree, to)


def _place(index: tuple[slice, ...] | None) -> Hashable:
    return tuple((part.start, part.stop) for part in index or ())
