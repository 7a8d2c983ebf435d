"""A run around a learner that costs nothing, for tests of all that is around the learner."""

from pathlib import Path

import jax
import jax.numpy as jnp

from rrm_jax.checkpoints.sources import open_source
from rrm_jax.checkpoints.store import complete_steps
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import make_mesh, param_sharding, replicated
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.run import Run


class StubLearner:
    """A model whose every parameter grows by 1 with each update."""

    def __init__(self, config: TrainConfig):
        self.assets, self.attention = Path(config.model.path), "no attention"
        self.base_fingerprint = "base of " + config.model.path
        self.version, self._mesh = 0, make_mesh(devices=jax.devices()[:1] if jax.process_count() == 1 else None)
        self._abstract = abstract_params(
            open_source(config.model.path).config, jnp.float32, True, lambda spec: param_sharding(self._mesh, spec)
        )
        self.params = jax.tree.map(lambda a: jnp.zeros(a.shape, device=a.sharding), self._abstract)

    def update(self) -> None:
        self.params, self.version = jax.tree.map(lambda x: x + 1, self.params), self.version + 1

    def save(self, checkpoints, step, meta):
        checkpoints.save(
            step,
            self.params,
            {"count": jnp.full((), self.version, jnp.int32, device=replicated(self._mesh))},
            meta | {"version": self.version},
        )

    def restore(self, checkpoints, step):
        count = {"count": jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self._mesh))}
        self.params, _, meta = checkpoints.restore(step, self._abstract, count)
        self.version = meta["version"]
        return meta


def settings(home: Path, output: Path, **changes) -> TrainConfig:
    tree = {
        "output": str(output),
        "steps": 6,
        "model": {"path": str(home / "base")},
        "data": {"train": str(home / "pairs.jsonl"), "eval": str(home / "eval.jsonl")},
        "judge": {"template": str(home / "template.toml")},
        "rollout": {"max_new_tokens": 8},
        "checkpoint": {"every": 1, "keep": 2},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return TrainConfig.model_validate(tree)


def loop(config, resume=False, *, accuracy=(), during=lambda run, step: None, said=None):
    """Steps of a run; `during(run, step)` happens before a step's update; `accuracy[step]` is its evaluation's."""
    with Run(config, resume, said.append if said is not None else lambda message: None) as run:
        for step in range(run.first_step, config.steps + 1):
            run.check_stop()
            during(run, step)
            run.learner.update()
            run.check_stop()  # inside a step: must not leave
            run.metrics.write("train", step, {"loss": float(step)})
            if step < len(accuracy) and accuracy[step] is not None:
                run.metrics.write("eval", step, {"accuracy": accuracy[step]})
            run.write_traces(step, [{"id": f"row {step}"}])
            run.finish_step(step, position=10 * step)
    return run


def steps_of(config) -> list[int]:
    return complete_steps(Path(config.output) / "checkpoints")


def embedding(path) -> float:
    source = open_source(path)
    return float(source.read(("final_norm",), None)[0])
