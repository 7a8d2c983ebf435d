"""`rrm train`'s settings: what cannot be is said before anything is loaded, with what to do."""

import re
import subprocess
import sys

import pytest

from rrm_jax.config import load_config
from rrm_jax.errors import RrmError
from rrm_jax.training.config import VARIANTS, GRPOConfig, TrainConfig

GIVEN = ["output=runs/x", "steps=1", "model.path=m", "data.train=pairs.jsonl"]


def load(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*GIVEN, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.group_sise=8"], "rollout.group_sise: unknown key; did you mean 'rollout.group_size'?"),
        (["grpo.clip_eps=0.2"], "grpo.clip_eps: unknown key; did you mean 'grpo.clip_"),
        (["learning_rate=1e-6"], "learning_rate: unknown key; did you mean 'optimizer.learning_rate'?"),
        (["micro_batch_rows=4"], "micro_batch_rows: unknown key; "),
        (["model.lora.rnk=8"], "model.lora.rnk: unknown key; did you mean 'model.lora.rank'?"),
        (["rollout.group_size=1"], "rollout.group_size: Input should be greater than or equal to 2 (got 1)"),
        (["grpo.variant=ppo"], "grpo.variant: Input should be 'grpo', 'dr_grpo', 'dapo' or 'gspo' (got 'ppo')"),
        (
            ["rollout.prompts_per_step=100"],
            "rollout.prompts_per_step 100 is not a multiple of grpo.mini_batch_prompts 64",
        ),
        (["grpo.kl_estimator=k1"], "use k2 or k3, or kl_in: reward"),
        (
            ["reward.consistency=1", "rollout.prompts_per_step=3", "grpo.mini_batch_prompts=1"],
            "both orders, and rollout.prompts_per_step 3 is odd",
        ),
        (["rollout.asynchronous=true"], "set grpo.importance_cap, 2 for example"),
        (["reward.overlong_tokens=8192"], "reward.overlong_tokens 8192 is not below rollout.max_new_tokens 8192"),
        (["optimizer.kind=adafactor", "optimizer.moments=int8"], "moments: int8 is of adamw"),
        (["rollout.temperature=0"], "rollout.temperature: Input should be greater than 0 (got 0)"),
        (["grpo.clip_low=1"], "grpo.clip_low: Input should be less than 1 (got 1)"),
        (["steps=0"], "steps: Input should be greater than or equal to 1 (got 0)"),
        (["grpo.variant=[dapo]"], "grpo.variant: Input should be 'grpo', 'dr_grpo', 'dapo' or 'gspo'"),
        (["optimizer.learning_rate=.inf"], "optimizer.learning_rate: Input should be a finite number"),
        (["reward.invalid=.nan"], "reward.invalid: Input should be a finite number"),
        (["seed=4294967296"], "seed: Input should be less than or equal to 4294967295"),
    ],
)
def test_what_cannot_be_is_said(overrides, message):
    with pytest.raises(RrmError, match=re.escape(message)):
        load(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["grpo.kl_estimator=k1", "grpo.kl_in=reward"],
        ["grpo.kl_estimator=k1", "grpo.kl_coef=0"],
        ["reward.overlong_tokens=8191"],
        ["rollout.asynchronous=true", "grpo.importance_cap=2"],
        ["reward.consistency=1", "rollout.prompts_per_step=4", "grpo.mini_batch_prompts=2"],
        ["optimizer.kind=adafactor"],
        ["method=supervised", "rollout.prompts_per_step=100", "reward.overlong_tokens=9000"],  # not of this method
    ],
)
def test_what_is_beside_it_can_be(overrides):
    load(*overrides)


def test_what_is_required_is_named():
    with pytest.raises(RrmError) as caught:
        load_config(TrainConfig, None, ["steps=3"])
    for name in ("output", "model", "data"):
        assert f"{name}: a value is required" in str(caught.value)


# What the papers change of GRPO, in full; all else is as it is by default.
EXPECTED = {
    "grpo": {},
    "dr_grpo": {"normalise_std": False, "aggregation": "constant"},
    "dapo": {"clip_high": 0.28, "aggregation": "token", "dynamic_sampling": True, "kl_coef": 0.0},
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_what_its_paper_does_and_what_is_given_counts(variant: str):
    plain, changed = GRPOConfig().model_dump(), GRPOConfig(variant=variant).model_dump()
    differing = {key: value for key, value in changed.items() if value != plain[key]}
    differing.pop("variant", None)
    assert differing == EXPECTED[variant]
    given = load(f"grpo.variant={variant}", "grpo.clip_high=0.25", "grpo.kl_coef=0.5").grpo
    assert (given.clip_high, given.kl_coef) == (0.25, 0.5)
    # A resolved configuration, written out and read again, is the same.
    assert GRPOConfig.model_validate(given.model_dump()) == given


def test_optimiser_steps_a_step():
    assert load().updates_per_step == 2
    assert load("grpo.epochs=3", "grpo.mini_batch_prompts=32").updates_per_step == 12
    assert load("method=supervised").updates_per_step == 1


def test_rrm_train_says_it_and_ends_with_2(tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "rrm_7b.yaml", f"output={run}", "rollout.group_size=1", "grpo.clip_eps=0.2"]
    code = "import sys; from rrm_jax.cli.main import app; sys.argv = ['rrm', *sys.argv[1:]]; app()"
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: rrm_7b.yaml is not a valid TrainConfig:\n")
    assert "rollout.group_size: " in ended.stderr
    assert "grpo.clip_eps: unknown key" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not run.exists()
