"""What programs hold and exchange by arithmetic, where no compiler says it, and to choose what is worth compiling.

State is exact: it is what the shardings say. Temporaries and exchanges are a model of what is large: the inputs of
layers that wait for the backward pass, a layer's own activations, weights gathered over fsdp, the output matrix's
gradient, chunks of logits. docs/planning.md says how far that is from compiled programs.
"""

from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh, AxisType

from rrm_jax.models.config import DecoderConfig
from rrm_jax.parallel.mesh import AXES, MeshShape, mesh_sizes
from rrm_jax.planning.collectives import Exchange
from rrm_jax.planning.memory import Footprint
from rrm_jax.planning.programs import BLOCK, Program, RunPrograms, device_bytes
from rrm_jax.planning.topology import Topology
from rrm_jax.sampling.call import PREFILL_TOKENS
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.throughput import layer_weights

_LOGITS = 128 * 2**20  # a chunk of float32 logits, see rl/logprobs.py


def programs_of(config: TrainConfig, decoder: DecoderConfig, topology: Topology) -> RunPrograms:
    """For a topology without devices. Raises RrmError where the mesh does not fit it, or the model."""
    sizes = mesh_sizes(MeshShape(**config.mesh.model_dump()), topology.count)
    kind = jax.sharding.AbstractDevice(topology.accelerator.kinds[0], None, platform=topology.platform)
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=kind)
    return RunPrograms(config, decoder, mesh)


def estimated(programs: RunPrograms) -> Iterator[Footprint]:
    """Every program's footprint."""
    sizes = {name: device_bytes(tree) for name, tree in programs.state.items()}
    model = _Model(programs)
    for program in programs.all():
        holds = {name: sizes[name] for name in (*program.takes, *program.beside)}
        if program.gives in sizes and program.gives not in holds:
            holds[program.gives] = sizes[program.gives]
        holds["temporaries"] = holds.get("temporaries", 0) + int(model.temporaries(program))
        moved = sum(sizes[name] for name in program.takes) + sizes.get(program.gives, 0)
        moved *= 2 if program.name == "apply" else 1
        yield Footprint(program.name, holds, tuple(model.exchanges(program)), moved, 0.0)


class _Model:
    def __init__(self, programs: RunPrograms):
        self.programs, self.config, self.decoder = programs, programs.config, programs.decoder
        mesh = programs.mesh.shape
        self.data, self.fsdp, self.tensor = (mesh[axis] for axis in AXES)
        self.width = 2 if self.config.model.compute_dtype == "bfloat16" else 4
        batch = programs.micro_batch
        self.rows, self.time = len(batch.rows) // programs.learner.ways, batch.time
        self.tokens = self.rows * self.time
        self.table = self.decoder.vocab_size * self.decoder.hidden_size / self.tensor
        self.weights = (self.decoder.num_layers * layer_weights(self.decoder)) / self.tensor

    def temporaries(self, program: Program) -> float:
        name, decoder = program.name, self.decoder
        if name == "hand-over":
            return self.programs.decoder.num_parameters / self.tensor * self.width / 2
        if name == "log-probs":
            output = self.table * self.width + 2 * _LOGITS
            return max(self._layer(self.tokens) + self._gathered(), output)
        if name == "forward and backward":
            kept = self._kept()
            output = self.table * (self.width + 4) + 3 * _LOGITS
            gradients = 0 if self.config.model.lora else (self.weights / self.fsdp) * self.width
            # Logits come before the first layer's backward pass: the two are not held at once.
            return kept + gradients + max(2 * (self._layer(self.tokens) + 2 * self._gathered()), output)
        if name == "decode":
            own = self.programs.slots / self.programs.learner.ways
            return 4 * own * decoder.vocab_size + self._layer(own)
        if name == "prefill":
            return self._layer(PREFILL_TOKENS)
        return 0.0

    def _layer(self, tokens: float) -> float:
        """Activations of one layer."""
        decoder = self.decoder
        heads = (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim / self.tensor
        each = 3 * decoder.hidden_size + heads + 3 * decoder.intermediate_size / self.tensor
        scores = 0.0
        if self.programs.learner.options.attention == "xla" and tokens == self.tokens:
            scores = 2 * 4 * self.rows * decoder.num_heads / self.tensor * self.time**2
        return self.width * tokens * each + scores

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
        own = self.fsdp - 1
        whole = (self.weights + 2 * self.table) * self.width
        if own and name in ("log-probs", "forward and backward", "hand-over"):
            passes = 2 if name == "forward and backward" else 1
            yield Exchange("all-gather", "fsdp", 7 * layers * passes, passes * whole * own / self.fsdp)
        if own and name == "forward and backward" and not self.config.model.lora:
            yield Exchange("reduce-scatter", "fsdp", 7 * layers, whole * own / self.fsdp)
        if self.data > 1 and name == "forward and backward" and not self.config.model.lora:
            gradient = whole / self.fsdp
            yield Exchange("all-reduce", "data", 7 * layers, 2 * gradient * (self.data - 1) / self.data)
        if self.tensor > 1:
            tokens = {"log-probs": self.tokens, "forward and backward": self.tokens, "prefill": PREFILL_TOKENS}.get(
                name, 0
            )
            times = 6 if name == "forward and backward" else 2
            if name == "decode":
                tokens, times = self.programs.slots / self.programs.learner.ways, 2 * BLOCK
            if tokens:
                size = tokens * self.decoder.hidden_size * self.width
                sent = 2 * size * (self.tensor - 1) / self.tensor
                yield Exchange("all-reduce", "tensor", times * layers, times * layers * sent)
