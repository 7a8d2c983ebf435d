"""What a run writes of its numbers: rows that survive kills, Weights & Biases behind a fake, and throughput by hand."""

import json
import sys
from types import SimpleNamespace

import jax
import pytest

from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.testing import tiny_config
from rrm_jax.training import throughput as module
from rrm_jax.training.batches import Example
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.metrics import Metrics, import_wandb, keep_until
from rrm_jax.training.throughput import layer_weights, throughput, training_work

QWEN_7B = DecoderConfig(
    vocab_size=152_064, hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128,
    intermediate_size=18_944, max_positions=131_072,
)  # fmt: skip


def config(**log) -> TrainConfig:
    tree = {"output": "x", "steps": 9, "model": {"path": "m"}, "data": {"train": "d"}, "log": log}
    return TrainConfig.model_validate(tree)


@pytest.mark.parametrize(
    ("step", "left"), [(-1, []), (0, [0]), (1, [0, 1, 1]), (2, [0, 1, 1, 2]), (9, [0, 1, 1, 2, 3])]
)
def test_rows_of_later_steps_and_a_torn_line_are_cut_off(tmp_path, step, left):
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(
        json.dumps({"kind": "train", "step": at, "text": "é\n"}).encode() + b"\n" for at in (0, 1, 1, 2, 3)
    )
    path.write_bytes(whole + b'{"kind": "train", "step": 1')
    keep_until(path, step)
    assert [row["step"] for row in read_metrics(tmp_path, "train")] == left
    assert whole.startswith(path.read_bytes())


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "train", "step": 1}\n{"kind"\n')
    with pytest.raises(RrmError, match=r"metrics\.jsonl:2 is not a row with a step"):
        Metrics(tmp_path, 5, config())


def test_rows_are_known_across_a_resume(tmp_path):
    first = Metrics(tmp_path, -1, config())
    first.write("eval", 0, {"accuracy": 0.5})
    first.write("train", 1, {"loss": 1.0})
    first.close()
    again = Metrics(tmp_path, 0, config())
    assert (again.has("eval", 0), again.has("train", 1), again.has("eval", 1)) == (True, False, False)
    again.write("train", 1, {"loss": 1.0})
    assert again.has("train", 1)
    again.close()
    assert len(read_metrics(tmp_path, "train")) == 1


def test_a_line_on_the_terminal_says_how_far_the_run_is(tmp_path, capsys):
    metrics = Metrics(tmp_path, -1, config())
    metrics.write("train", 3, {"loss": 0.25, "tokens": 7}, ("loss",))
    metrics.close()
    assert capsys.readouterr().err == "train 3 of 9  loss 0.25\n"


class FakeWandb:
    def __init__(self, fails: str | None = None):
        self.started, self.logged, self.finished, self._fails = [], [], 0, fails

    def init(self, **how):
        if self._fails:
            raise ValueError(self._fails)
        self.started.append(how)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_wandb_gets_the_same_names_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    fake, directory = FakeWandb(), tmp_path / "grpo_7b"
    directory.mkdir()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step, kept in ((1, -1), (2, 1)):
        metrics = Metrics(directory, kept, config(wandb="judges"))
        metrics.write("train", step, {"loss": 0.5, "kl": 0.1})
        metrics.write("eval", step, {"accuracy": 0.7})
        metrics.close()
    assert fake.logged == [
        (step, values) for step in (1, 2) for values in ({"train/loss": 0.5, "train/kl": 0.1}, {"eval/accuracy": 0.7})
    ]
    one, two = fake.started
    assert one == two
    assert (one["project"], one["name"], one["resume"]) == ("judges", "grpo_7b", "allow")
    assert len(one["id"]) == 32
    assert one["config"]["steps"] == 9
    assert fake.finished == 2


def test_without_wandb_or_a_login_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(RrmError, match=r"pip install 'rrm-jax\[wandb\]'"):
        import_wandb()
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails="api_key not configured"))
    with pytest.raises(RrmError, match="api_key not configured; log in with  wandb login"):
        Metrics(tmp_path, -1, config(wandb="judges"))


def test_flops_of_a_7b_by_hand():
    """Qwen2.5-7B: q, k, v and o, then gate, up and down; 28 layers; 152,064 × 3,584 of output matrix.

    At 1,024 + 3,072 tokens the answer is near 6 N tokens (N = 7.6e9 with the input table, which multiplies nothing):
    the prompt saves a quarter of the unembedding, and attention adds.
    """
    layer = 3584 * 3584 + 2 * 3584 * 512 + 3584 * 3584 + 3 * 3584 * 18_944
    assert layer_weights(QWEN_7B) == layer == 233_046_016
    table = 152_064 * 3584
    work = training_work(QWEN_7B, [1024], [3072])
    attention = 12 * 28 * 28 * 128 * (4096 * 4097 // 2)
    assert work.flops == 6 * (28 * layer * 4096 + table * 3072) + attention
    assert work.tokens == 4096
    assert work.flops / (6 * QWEN_7B.num_parameters * 4096) == pytest.approx(0.964, abs=0.001)
    # Without attention, the input table, norms and biases: 6 N tokens to the last digit.
    everything = training_work(QWEN_7B, [0], [4096]).flops - attention
    norms_and_biases = 28 * (2 * 3584 + 36 * 128) + 3584
    assert everything == 6 * (QWEN_7B.num_parameters - table - norms_and_biases) * 4096


def test_flops_add_up_over_sequences_and_respect_windows_and_adapters():
    small = tiny_config()
    parts = [training_work(small, [5], [7]), training_work(small, [3], [1])]
    both = training_work(small, [5, 3], [7, 1])
    assert both.flops == sum(part.flops for part in parts)
    assert both.tokens == 16
    windowed = tiny_config(sliding_window=4, window_layers=(False, True))
    keys = sum(range(1, 13)) - sum(min(at, 4) for at in range(1, 13))
    assert parts[0].flops - training_work(windowed, [5], [7]).flops == 12 * 4 * 8 * keys
    # Two completions of one prompt: its 5 tokens, and what they see of each other, once.
    twice = training_work(small, [5, 5], [7, 3], repeated=[False, True])
    apart = training_work(small, [5, 5], [7, 3])
    assert twice.tokens == 5 + 7 + 3
    once = 6 * 5 * small.num_layers * layer_weights(small) + 12 * 4 * 8 * small.num_layers * 15
    assert apart.flops - twice.flops == once
    full, frozen = (training_work(small, [5], [7], adapters=adapters).flops for adapters in (False, True))
    attention = 12 * 2 * 4 * 8 * sum(range(1, 13))
    assert (frozen - attention) / (full - attention) == pytest.approx(2 / 3)


def test_what_a_step_reports(monkeypatch):
    examples = [Example((1,) * 5, (2,) * 7), Example((1,) * 3, (2,))]
    seconds = {"seconds_sample": 6.0, "seconds_update": 2.0}
    assert throughput(tiny_config(), examples, seconds, 8, 2) == {"tokens_per_second": 2.0}  # a CPU
    device = SimpleNamespace(device_kind="NVIDIA H100", memory_stats=lambda: {"peak_bytes_in_use": 3 * 2**30})
    fake = SimpleNamespace(devices=lambda: [device] * 8, local_devices=lambda: [device] * 8)
    monkeypatch.setattr(module, "jax", fake)
    flops = training_work(tiny_config(), [5, 3], [7, 1]).flops
    assert throughput(tiny_config(), examples, seconds, 8, 2) == {
        "tokens_per_second": 2.0,
        "mfu": pytest.approx(2 * flops / 2.0 / (8 * 989e12)),
        "memory_peak_gib": 3.0,
    }


def test_flops_against_what_the_compiler_counts():
    """XLA's own count for a forward pass of one layer's matrices, on this machine's CPU: 2 FLOPs a weight and token."""
    small = tiny_config()
    tokens, d, f, n = 16, small.hidden_size, small.intermediate_size, small.head_dim

    def matrices(x, q, k, v, o, gate, up, down):
        heads = x @ q
        return heads @ o, x @ k, x @ v, (x @ gate * (x @ up)) @ down

    width = [(d, small.num_heads * n), (d, small.num_kv_heads * n), (d, small.num_kv_heads * n)]
    width += [(small.num_heads * n, d), (d, f), (d, f), (f, d)]
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in [(tokens, d), *width]]
    counted = jax.jit(matrices).lower(*shapes).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(2 * tokens * layer_weights(small), rel=0.02)
