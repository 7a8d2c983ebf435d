"""What programs hold and exchange by arithmetic, where no compiler says it, and to choose what is worth compiling.

State is exact: it is what the shardings say. Temporaries and exchanges are a model of what is large: the inputs of
layers that wait for the backward pass, a layer's own activations, weights gathered over fsdp, the output matrix, a
block of logits. docs/planning.md says how far that is from compiled programs.
"""

from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh, AxisType

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.parallel.mesh import AXES, MeshShape, mesh_sizes
from rrm_jax.planning.collectives import Exchange
from rrm_jax.planning.memory import Footprint
from rrm_jax.planning.programs import BLOCK, Program, RunPrograms, device_bytes
from rrm_jax.planning.topology import Topology
from rrm_jax.rl.logprobs import LOGITS_BYTES
from rrm_jax.sampling.call import PREFILL_TOKENS
from rrm_jax.training.config import MeshConfig, TrainConfig
from rrm_jax.training.rollout_mesh import check_divides
from rrm_jax.training.throughput import layer_weights


def programs_of(config: TrainConfig, decoder: DecoderConfig, topology: Topology) -> RunPrograms:
    """For a topology without devices. Raises RrmError where a mesh does not fit it, or the model."""
    rollout, count = config.rollout, topology.count
    if rollout.devices >= count:
        raise RrmError(f"rollout.devices={rollout.devices} leaves none of {count} devices to train")
    training = _abstract(config.mesh, count - rollout.devices, topology)
    if rollout.devices:
        sampling = _abstract(rollout.mesh or MeshConfig(), rollout.devices, topology)
        check_divides(training, sampling)
    else:
        sampling = training if rollout.mesh is None else _abstract(rollout.mesh, count, topology)
    return RunPrograms(config, decoder, training, sampling)


def _abstract(shape: MeshConfig, devices: int, topology: Topology) -> AbstractMesh:
    sizes = mesh_sizes(MeshShape(**shape.model_dump()), devices, topology.slices)
    kind = jax.sharding.AbstractDevice(topology.accelerator.kinds[0], None, platform=topology.platform)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=kind)


def estimated(programs: RunPrograms, slices: int = 1) -> Iterator[Footprint]:
    """Every program's footprint, on so many TPU slices."""
    sizes = {name: device_bytes(tree) for name, tree in programs.state.items()}
    model = _Model(programs, slices)
    for program in programs.all():
        holds = {name: sizes[name] for name in (*program.takes, *program.beside)}
        if program.gives in sizes and program.gives not in holds:
            holds[program.gives] = sizes[program.gives]
        holds["temporaries"] = holds.get("temporaries", 0) + int(model.temporaries(program))
        moved = sum(sizes[name] for name in program.takes) + sizes.get(program.gives, 0)
        moved *= 2 if program.name == "apply" else 1
        yield Footprint(program.name, holds, tuple(model.exchanges(program)), moved, 0.0)


class _Model:
    def __init__(self, programs: RunPrograms, slices: int):
        self.slices = slices
        self.programs, self.config, self.decoder = programs, programs.config, programs.decoder
        mesh = programs.mesh.shape
        self.data, self.fsdp, self.tensor = (mesh[axis] for axis in AXES)
        self.sampling_tensor = programs.rollout_mesh.shape["tensor"]
        self.width = 2 if self.config.model.compute_dtype == "bfloat16" else 4
        batch = programs.micro_batch
        self.rows, self.time = len(batch.rows) // programs.learner.ways, batch.time
        self.tokens = self.rows * self.time
        table, layers = self.decoder.vocab_size * self.decoder.hidden_size, self.decoder.num_layers
        self.table, self.weights = table / self.tensor, layers * layer_weights(self.decoder) / self.tensor

    def temporaries(self, program: Program) -> float:
        name, decoder = program.name, self.decoder
        if name == "hand-over":
            gathered = self.programs.decoder.num_parameters / 2
            if self.programs.apart:  # a layer at a time, but for the tables
                gathered = max(2 * decoder.vocab_size * decoder.hidden_size, layer_weights(decoder))
            return gathered / self.sampling_tensor * self.width
        if name == "log-probs":
            # The head binds, unless attention holds its scores: layers' activations are let go before it.
            head = self.table * self.width + LOGITS_BYTES + 3 * self.width * self.tokens * decoder.hidden_size
            return max(head, self._scores(self.tokens, self.tensor))
        if name == "forward and backward":
            output = self.table * self.width + 3 * LOGITS_BYTES
            gradients = 0 if self.config.model.lora else (self.weights / self.fsdp) * self.width
            # Logits come before the first layer's backward pass: the two are not held at once.
            layer = 1.5 * self._layer(self.tokens, self.tensor) + self._gathered()
            return self._kept() + gradients + max(layer, output)
        if name == "decode":
            own = self.programs.slots / self.programs.engine.ways
            return 4 * own * decoder.vocab_size + self._layer(own, self.sampling_tensor)
        if name == "prefill":
            return self._layer(PREFILL_TOKENS, self.sampling_tensor)
        return 0.0

    def _layer(self, tokens: float, tensor: int) -> float:
        """Activations of one layer."""
        decoder = self.decoder
        heads = (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim / tensor
        each = 3 * decoder.hidden_size + heads + 3 * decoder.intermediate_size / tensor
        return self.width * tokens * each + self._scores(tokens, tensor)

    def _scores(self, tokens: float, tensor: int) -> float:
        """Attention scores of one layer, where they are held at all."""
        if self.programs.learner.options.attention != "xla" or tokens != self.tokens:
            return 0.0
        return 2 * 4 * self.rows * self.decoder.num_heads / tensor * self.time**2

    def _gathered(self) -> float:
        """One layer's weights, whole over fsdp."""
        return self.width * layer_weights(self.decoder) / self.tensor if self.fsdp > 1 else 0.0

    def _kept(self) -> float:
        """What waits for the backward pass."""
        decoder = self.decoder
        inputs = decoder.hidden_size
        heads = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim / self.tensor
        products = heads + 2 * decoder.hidden_size + 2 * decoder.intermediate_size / self.tensor
        each = {"full": inputs, "dots": inputs + products, "none": 2 * (inputs + products)}[self.config.model.remat]
        return self.width * decoder.num_layers * self.tokens * each

    def exchanges(self, program: Program) -> Iterator[Exchange]:
        name, layers = program.name, self.decoder.num_layers
        own, whole = self.fsdp - 1, (self.weights + 2 * self.table) * self.width
        if name == "hand-over":
            yield from self._handed_over(whole)
        if own and name in ("log-probs", "forward and backward"):
            passes = 2 if name == "forward and backward" else 1
            yield Exchange("all-gather", "fsdp", 7 * layers * passes, passes * whole * own / self.fsdp)
        if own and name == "forward and backward" and not self.config.model.lora:
            yield Exchange("reduce-scatter", "fsdp", 7 * layers, whole * own / self.fsdp)
        if self.data > 1 and name == "forward and backward" and not self.config.model.lora:
            gradient = whole / self.fsdp
            within = self.data // self.slices
            if within > 1:
                yield Exchange("all-reduce", "data", 7 * layers, 2 * gradient * (within - 1) / within)
            if self.slices > 1:
                sent = 2 * gradient / within * (self.slices - 1) / self.slices
                yield Exchange("all-reduce", "slices", 7 * layers, sent)
        yield from self._sums_over_tensor(name)

    def _handed_over(self, whole: float) -> Iterator[Exchange]:
        """`whole`: bytes of the weights, split over the training mesh's tensor axis."""
        layers, tensor = self.decoder.num_layers, self.sampling_tensor
        given = whole * self.tensor
        missing = given / tensor - given / max(tensor, self.tensor) / self.fsdp
        if missing > 0:
            yield Exchange("all-gather", "fsdp" if tensor == self.tensor else "?", 7 * layers, missing)
        if self.programs.apart:
            copies = self.programs.rollout_mesh.size / tensor * given
            yield Exchange("copy", "?", 7 * layers, copies / self.programs.mesh.size)

    def _sums_over_tensor(self, name: str) -> Iterator[Exchange]:
        of_sampling = name in ("prefill", "decode")
        tensor = self.sampling_tensor if of_sampling else self.tensor
        tokens = {"log-probs": self.tokens, "forward and backward": self.tokens, "prefill": PREFILL_TOKENS}.get(name, 0)
        times = 6 if name == "forward and backward" else 2
        if name == "decode":
            tokens, times = self.programs.slots / self.programs.engine.ways, 2 * BLOCK
        if tensor > 1 and tokens:
            sent = 2 * tokens * self.decoder.hidden_size * self.width * (tensor - 1) / tensor
            layers = self.decoder.num_layers
            yield Exchange("all-reduce", "tensor", times * layers, times * layers * sent)
