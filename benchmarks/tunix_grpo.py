"""The peer of `training.py`: google-tunix's GRPOLearner on JAX, in an interpreter of its own.

    python benchmarks/tunix_grpo.py < job.json

Reads one job (see `training.py`), trains, and answers with a JSON object on a line: its version, the seconds of setting
up (models and learner, no imports), and for every step its seconds and CPU-seconds, its phases' seconds, the mean
length of its completions (stop tokens counted) and the standard deviation of its rewards. A step lasts from the moment
when the learner asks for its prompts until it asks for the next ones, when all its arrays are there.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import metadata

import jax
import numpy as np
import optax
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix_generate import load  # pyrefly: ignore[missing-import]


class Ids:
    """Stands for a tokenizer: texts are numbers, the token ids. Neither a prompt nor a completion is padded with 0
    but by the learner, which leaves out of the loss whatever has the pad's id; a drawn 0 is one token in 8,192."""

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return -2

    def pad_id(self) -> int:
        return 0


class TimedCluster(rl_cluster.RLCluster):
    """Counts the seconds of a step's phases; each ends when its arrays are there."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.phases: list[dict] = []

    def _timed(self, phase: str, work):
        start = time.perf_counter()
        result = work()
        jax.block_until_ready(result)
        self.phases[-1][phase] = time.perf_counter() - start
        return result

    def generate(self, *args, **settings):
        drawn = self._timed("sample", lambda: super(TimedCluster, self).generate(*args, **settings))
        new = self.cluster_config.rollout_config.max_tokens_to_generate
        # It drops the stop token: a text that stopped was one token longer.
        self.phases[-1]["length"] = float(np.mean([min(len(text) + 1, new) for text in drawn.tokens]))
        return drawn

    def get_ref_per_token_logps(self, *args, **settings):
        return self._timed("score", lambda: super(TimedCluster, self).get_ref_per_token_logps(*args, **settings))

    def update_actor(self, *args, **settings):
        return self._timed("update", lambda: super(TimedCluster, self).update_actor(*args, **settings))


def reward(completion: str) -> float:
    """±1 by whether a text's last token is odd, −1 for an empty one; as `training.py`'s verdicts are."""
    return 1.0 if completion and int(completion.split()[-1]) % 2 else -1.0


def cluster_of(job: dict) -> TimedCluster:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    prompt = len(job["prompts"][0])
    rollout = RolloutConfig(
        max_tokens_to_generate=job["new"],
        max_prompt_length=prompt,
        kv_cache_size=prompt + job["new"],
        temperature=1.0,
        top_p=1.0,
        eos_tokens=job["stop_ids"],
    )
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(job["learning_rate"], weight_decay=0.0)
        ),
        eval_every_n_steps=job["steps"] + 1,
        max_steps=job["steps"] + 1,
    )
    return TimedCluster(
        actor=load(job["directory"])[0],
        reference=load(job["directory"])[0],
        tokenizer=Ids(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh), training_config=training, rollout_config=rollout
        ),
    )


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    job = json.loads(sys.stdin.readline())
    start = time.perf_counter()
    cluster = cluster_of(job)
    grpo = GRPOConfig(num_generations=job["samples"], beta=job["beta"], kl_loss_mode="low_var_kl")

    def rewards(prompts, completions: list[str], **_) -> list[float]:
        found = [reward(completion) for completion in completions]
        cluster.phases[-1]["reward_std"] = float(np.std(found))
        return found

    learner = GRPOLearner(cluster, grpo, reward_fns=rewards)
    setup = time.perf_counter() - start
    marks = []

    def batches() -> Iterator[dict]:
        size = len(job["prompts"]) // job["steps"]
        for first in range(0, len(job["prompts"]), size):
            marks.append((time.perf_counter(), time.process_time()))
            cluster.phases.append({})
            # Left alone, it draws with the same noise in every step, and lengths would hardly differ between steps.
            cluster.cluster_config.rollout_config.seed = jax.random.key(first)
            texts = [" ".join(map(str, ids)) for ids in job["prompts"][first : first + size]]
            yield {"prompts": np.array(texts)}
        marks.append((time.perf_counter(), time.process_time()))

    learner.train(batches())
    steps = [
        phases | {"seconds": after[0] - before[0], "cpu_seconds": after[1] - before[1]}
        for phases, before, after in zip(cluster.phases, marks, marks[1:], strict=False)
    ]
    name = f"tunix {metadata.version('google-tunix')}, jax {jax.__version__}"
    print(json.dumps({"name": name, "setup": setup, "steps": steps}), file=answers, flush=True)


if __name__ == "__main__":
    main()
