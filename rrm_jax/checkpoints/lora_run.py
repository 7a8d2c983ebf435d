"""A training run that holds adapters (`models.lora`): what it says of its base, and the sum of the two, read by tensor.

RUN/config.yaml                model.path, the base, and model.lora: {rank, alpha}
RUN/checkpoints/STEP/params    the adapters' tree, float32
RUN/checkpoints/STEP/meta      its facts hold base_fingerprint, of the model that the adapters belong to
"""

import dataclasses
import hashlib
import os
from pathlib import Path

import jax
import numpy as np

from rrm_jax.checkpoints.assets import refuse
from rrm_jax.checkpoints.run_files import CONFIG_YAML, read_settings, split_step
from rrm_jax.checkpoints.store import PARAMS, Arrays, Names, mismatches
from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.lora import adapter_specs
from rrm_jax.models.params import is_spec


@dataclasses.dataclass(frozen=True)
class Lora:
    """`base` is where the frozen model is, if it still is where it was."""

    rank: int
    alpha: float
    base: Path


def read_lora(run: Path) -> Lora | None:
    """The adapters' settings in a run's config.yaml; None where the whole model was trained. Raises RrmError."""
    if not (run / CONFIG_YAML).is_file():
        return None
    settings = read_settings(run)
    try:
        lora = settings["model"].get("lora")
        if lora is None:
            return None
        base = _locate(run, str(settings["output"]), str(settings["model"]["path"]))
        return Lora(int(lora["rank"]), float(lora["alpha"]), base)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RrmError(
            f"{run / CONFIG_YAML} does not say which model was trained, and how: {type(error).__name__}: {error}"
        ) from None


def _locate(run: Path, output: str, base: str) -> Path:
    """`base` seen from where the run was started: there `output` named this run. From here, if that cannot be told."""
    here, tail = Path(os.path.abspath(run)).parts, Path(os.path.normpath(output)).parts
    started = Path(*here[: -len(tail)], base) if here[-len(tail) :] == tail else Path(base)
    return started if split_step(started)[0].exists() else Path(base)


class Adapters:
    """The adapters of one step. Raises RrmError where they are not what the configuration says."""

    def __init__(self, step: Path, config: DecoderConfig, lora: Lora):
        self._arrays, self._lora = Arrays(step, PARAMS), lora
        leaves = jax.tree.leaves_with_path(adapter_specs(config, lora.rank), is_leaf=is_spec)
        self._shapes = {jax.tree_util.keystr(keys, simple=True, separator="."): spec.shape for keys, spec in leaves}
        problems = mismatches(self._arrays.stored, self._shapes, step / PARAMS)
        refuse(f"{step} does not hold adapters of rank {lora.rank}, as its run's {CONFIG_YAML} says", problems)

    def add(self, names: Names, weight: np.ndarray) -> np.ndarray:
        """The unstacked parameter `weight` with its adapter, if it has one, in float32."""
        weight = weight.astype(np.float32)
        name = ".".join((names[0], *names[2:]))
        if f"{name}.up" not in self._shapes:
            return weight
        up, down = (self._arrays.read(f"{name}.{part}", int(names[1])) for part in ("up", "down"))
        change = up.reshape(-1, self._lora.rank) @ down.reshape(self._lora.rank, -1)
        change *= np.float32(self._lora.alpha / self._lora.rank)
        change += weight.reshape(change.shape)
        return change.reshape(weight.shape)

    def fingerprint(self, base: str) -> str:
        """Names the sum with the model that `base` names: of all that the adapters are."""
        digest = hashlib.sha256(f"{base} {self._lora.alpha}".encode())
        for name in sorted(self._shapes):
            digest.update(name.encode() + self._arrays.read(name).tobytes())
        return digest.hexdigest()
