"""The update phase of a GRPO step on this machine's devices, by the trainer's own learner: seconds and MFU.

    python benchmarks/update.py [--shape 1.5b] [--sequences 64] [--micro-batch-tokens 32768] [--repeats 5]

One optimiser step on sequences of 4,096 tokens (1,024 of prompt) of a model of 1.5B shape with random weights: bf16
forward and backward passes with everything recomputed, float32 master weights and adamw, a KL term. What it takes is
what `seconds_update` of a run's metrics counts: host arrays in, the gradient's norm out. MFU is model FLOPs (nothing
recomputed, no padding counted) over the chip's dense bf16 peak by its data sheet; expected on a GPU: at least 45 %.
Without an accelerator the default is `--shape tiny`, which shows that it runs and measures nothing.
"""

import argparse
import statistics
import tempfile
import time

import jax
import ml_dtypes
import numpy as np

from rrm_jax.models.config import DecoderConfig
from rrm_jax.parallel.accelerators import accelerator_of
from rrm_jax.rl.logprobs import completion_scores
from rrm_jax.rl.losses import PolicyBatch, PolicyLoss, policy_loss, token_weights
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from rrm_jax.training.batches import Example, micro_batches
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.learner import Learner
from rrm_jax.training.throughput import device_memory, training_work

TEMPERATURE = 0.6
SHAPES: dict[str, tuple[DecoderConfig, int, int]] = {  # and tokens of a prompt and of a completion
    "1.5b": (
        DecoderConfig(
            vocab_size=151_936, hidden_size=1536, num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128,
            intermediate_size=8960, max_positions=4096,
        ),
        1024,
        3072,
    ),
    "tiny": (tiny_config(), 32, 96),
}  # fmt: skip


def learner_of(shape: DecoderConfig, row_tokens: int, micro_batch_tokens: int, attention: str) -> Learner:
    with tempfile.TemporaryDirectory() as directory:
        write_hf_checkpoint(directory, shape, dtype=ml_dtypes.bfloat16)
        config = TrainConfig.model_validate(
            {
                "output": "none",
                "steps": 1,
                "model": {"path": directory, "attention": attention},
                "data": {"train": "none"},
                "pack": {"row_tokens": row_tokens, "micro_batch_tokens": micro_batch_tokens},
            }
        )
        learner = Learner(config)
    how = PolicyLoss(kl_coef=1e-3)

    def loss(model, batch):
        sequences, policy = batch
        scores = completion_scores(learner.decoder, model, sequences, TEMPERATURE, learner.options)
        return policy_loss(how, scores.logprob, scores.entropy, policy)

    learner.compile(loss)
    return learner


def update(learner: Learner, examples: list[Example]) -> None:
    """One update on made-up advantages and log-probabilities."""
    rng = np.random.default_rng(0)
    advantage = rng.standard_normal(len(examples))
    logprobs = [-rng.exponential(size=len(example.completion_ids)) for example in examples]
    weights, denominator = token_weights([len(example.completion_ids) for example in examples], "sequence", 1)

    def parts():
        for batch in micro_batches(examples, range(len(examples)), learner.config.pack, learner.ways):
            sequences, drawn = batch.sequences(), batch.along(logprobs)
            policy = PolicyBatch(
                advantage=batch.along(advantage), weight=batch.along(weights), response=batch.responses(),
                old_logprob=None, reference_logprob=drawn, sampler_logprob=drawn, mask=sequences.mask,
            )  # fmt: skip
            yield sequences, policy

    learner.update(parts(), denominator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    accelerated = jax.default_backend() != "cpu"
    parser.add_argument("--shape", choices=SHAPES, default="1.5b" if accelerated else "tiny")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--micro-batch-tokens", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", default="auto", help="auto, xla, cudnn or splash")
    args = parser.parse_args()
    shape, prompt, completion = SHAPES[args.shape]
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, (args.sequences, prompt + completion))
    examples = [Example(tuple(row[:prompt].tolist()), tuple(row[prompt:].tolist())) for row in ids]
    learner = learner_of(shape, prompt + completion, args.micro_batch_tokens, args.attention)
    seconds = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        update(learner, examples)
        seconds.append(time.perf_counter() - start)
    first, *counted = seconds
    median, devices = statistics.median(counted), learner.mesh.devices.flatten().tolist()
    work = training_work(learner.decoder, [prompt] * len(examples), [completion] * len(examples))
    print(f"{len(devices)} × {devices[0].device_kind}, jax {jax.__version__}, {learner.attention}")
    print(f"{args.shape}: {args.sequences} sequences of {prompt + completion} tokens, first update {first:.1f} s")
    print(f"an update: {median:.3f} s ({min(counted):.3f}–{max(counted):.3f}), {work.tokens / median:,.0f} tokens/s")
    device, memory = accelerator_of(devices[0]), device_memory()
    if device is not None:
        mfu = work.flops / median / (device.peak_flops * len(devices))
        print(f"MFU {100 * mfu:.1f} % of {device.peak_flops / 1e12:.0f} TFLOP/s a chip (expected ≥ 45 %)")
    if memory is not None:
        print(f"most memory of a chip: {memory / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
