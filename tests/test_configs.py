"""The configurations that come with the package: all load, and say what the paper's runs had, and how sure that is."""

import re
from pathlib import Path

import pytest
import yaml

from rrm_jax.config import load_config
from rrm_jax.training.config import VARIANTS, TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = ("1.5b", "7b", "14b", "32b")
RRM = [f"rrm_{size}" for size in SIZES]

# As the paper's runs had it (docs/method.md), written out once more, so that no edit of a file goes unnoticed.
METHOD = {
    "method": "grpo",
    "seed": 0,
    "judge.thinking": True,
    "judge.max_prompt_tokens": 4096,
    "rollout.prompts_per_step": 128,
    "rollout.group_size": 16,
    "rollout.temperature": 0.6,
    "rollout.max_new_tokens": 8192,
    "rollout.asynchronous": False,
    "grpo.mini_batch_prompts": 64,
    "grpo.epochs": 1,
    "grpo.normalise_std": True,
    "grpo.aggregation": "sequence",
    "grpo.ratio": "token",
    "grpo.clip_low": 0.2,
    "grpo.clip_high": 0.2,
    "grpo.kl_coef": 1e-3,
    "grpo.kl_estimator": "k3",
    "grpo.kl_in": "loss",
    "grpo.entropy_coef": 0.0,
    "grpo.importance_cap": None,
    "grpo.dynamic_sampling": False,
    "reward.consistency": 0.0,
    "reward.invalid": 0.0,
    "reward.length": 0.0,
    "reward.overlong_tokens": 0,
}
OF_A_SIZE = {  # learning rate, steps; those of 1.5B and 14B are ours
    "rrm_1.5b": (1e-6, 720),
    "rrm_7b": (1e-6, 720),
    "rrm_14b": (1e-6, 720),
    "rrm_32b": (5e-7, 440),
}
KV_HEADS = {"1.5b": 2, "7b": 4, "14b": 8, "32b": 8}
WIDTH = {"1.5b": 1536, "7b": 3584, "14b": 5120, "32b": 5120}


def load(name: str, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, CONFIGS / f"{name}.yaml", overrides)


def flat(config: TrainConfig) -> dict:
    tree = config.model_dump()
    sections = {key: value for key, value in tree.items() if isinstance(value, dict)}
    leaves = {key: value for key, value in tree.items() if key not in sections}
    return leaves | {f"{name}.{key}": value for name, held in sections.items() for key, value in held.items()}


def differing(one: TrainConfig, other: TrainConfig) -> set[str]:
    ones, others = flat(one), flat(other)
    return {key for key in ones if ones[key] != others[key]}


# Those of studies are of other kinds: tests/studies, tests/reproduce.
OTHERS = ("studies", "reproduce")
TRAINING = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.relative_to(CONFIGS).parts[0] not in OTHERS]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_loads_and_has_a_run_of_its_own(path: Path):
    config = load_config(TrainConfig, path)
    assert config.output.endswith(path.stem)
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", [*RRM, "rrm_7b_lora"])
def test_the_method_is_the_papers(name: str):
    values = flat(load(name))
    # Adapters, merged for a sampler in bfloat16, need it: see the file.
    expected = METHOD | ({"grpo.importance_cap": 2.0} if name == "rrm_7b_lora" else {})
    assert {key: values[key] for key in METHOD} == expected


@pytest.mark.parametrize("name", RRM)
def test_parts_of_the_data(name: str):
    weights = [part.weight for part in load(name).data.parts]
    assert weights == ([5, 1, 1, 1] if name == "rrm_32b" else [5, 1, 1])
    assert [part.path for part in load(name, "data.train=mine.jsonl").data.parts] == ["mine.jsonl"]


@pytest.mark.parametrize("name", RRM)
def test_learning_rate_and_steps(name: str):
    config = load(name)
    assert (config.optimizer.learning_rate, config.steps) == OF_A_SIZE[name]
    assert (config.optimizer.schedule, config.optimizer.warmup_steps) == ("constant", 0)
    assert config.updates_per_step == 2
    assert config.model.lora is None


def test_sizes_differ_in_nothing_else():
    for name in RRM:
        allowed = {"output", "steps", "model.path", "mesh.tensor", "rollout.batch_size", "optimizer.learning_rate"}
        # Only the largest has pairs of answers that were verified.
        assert differing(load(name), load("rrm_7b")) <= allowed | ({"data.train"} if name == "rrm_32b" else set())
    assert differing(load("rrm_7b_lora"), load("rrm_7b")) == {
        "output", "model.lora", "rollout.batch_size", "optimizer.learning_rate", "pack.micro_batch_tokens",
        "grpo.importance_cap",
    }  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_a_direct_judge_differs_only_where_it_must(size: str):
    direct, thinking = load(f"direct_judge_{size}"), load(f"rrm_{size}")
    assert differing(direct, thinking) == {"output", "judge.thinking", "rollout.max_new_tokens"}
    assert not direct.judge.thinking


@pytest.mark.parametrize("size", SIZES)
def test_batches_and_meshes_fit(size: str):
    """Whole groups are sampled together, the longest sequence is one row, and meshes divide the models."""
    config = load(f"rrm_{size}")
    rollout, pack, tensor = config.rollout, config.pack, config.mesh.tensor
    assert rollout.batch_size % rollout.group_size == 0
    assert pack.row_tokens == config.judge.max_prompt_tokens + rollout.max_new_tokens
    assert pack.micro_batch_tokens % pack.row_tokens == 0
    assert KV_HEADS[size] % tensor == 0
    assert all(WIDTH[size] % fsdp == 0 for fsdp in (8, 16, 32))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [*RRM, "direct_judge_7b", "rrm_7b_lora", "grpo_tiny"])
def test_a_variant_is_one_setting(name: str, variant: str):
    """No file writes out what a variant changes: that would count before it, and silently undo it."""
    changed = load(name, f"grpo.variant={variant}").grpo
    assert {key: getattr(changed, key) for key in VARIANTS[variant]} == VARIANTS[variant]


@pytest.mark.parametrize(
    "overrides",
    [
        ("grpo.variant=dapo", "reward.overlong_tokens=2048"),
        ("rollout.asynchronous=true", "grpo.importance_cap=2"),
        ("reward.consistency=1",),
        ("optimizer.moments=int8", "grpo.offload_reference=true"),
        ("rollout.prompts_per_step=32", "grpo.mini_batch_prompts=16"),
    ],
)
def test_settings_that_comments_name(overrides):
    text = "".join(path.read_text(encoding="utf-8") for path in CONFIGS.glob("*.yaml"))
    assert all(override in text or override.partition("=")[0] == "grpo.variant" for override in overrides)
    load("rrm_7b", *overrides)


SURE = re.compile(r"#.*(\[paper\]|\[code\]|\[recall\]|\[inferred\]|\bours\b)")
NUMBER = re.compile(r":\s*-?\d")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("rrm_*.yaml")), ids=lambda path: path.stem)
def test_every_number_says_where_it_is_from(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = [line for line in lines if not line.lstrip().startswith("#") and NUMBER.search(line.partition("#")[0])]
    assert numbers
    assert [line for line in numbers if not SURE.search(line)] == []


def test_numbers_are_numbers():
    """YAML reads 1e-6 as text. pydantic would mend that here, but not for whoever else reads these files."""
    for path in CONFIGS.rglob("*.yaml"):
        for scalar in re.findall(r":\s*([^\s#,{}]+)", path.read_text(encoding="utf-8")):
            if re.fullmatch(r"-?[\d.]+e-?\d+", scalar):
                assert isinstance(yaml.safe_load(scalar), float), (path, scalar)
