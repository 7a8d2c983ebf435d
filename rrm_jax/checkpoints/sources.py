"""The three kinds of directory that hold a model, behind one interface.

RUN is a training run's latest step; RUN/checkpoints/40 another one, and RUN/checkpoints/best its best.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np

from rrm_jax.checkpoints import fingerprint
from rrm_jax.checkpoints.assets import (
    CONFIG,
    FACTS,
    incomplete_name,
    is_incomplete,
    read_config,
    read_json,
    refuse,
)
from rrm_jax.checkpoints.hf import HfWeights, cast
from rrm_jax.checkpoints.lora_run import Adapters, Lora, read_lora
from rrm_jax.checkpoints.run_files import CONFIG_YAML, chosen_step, split_step
from rrm_jax.checkpoints.store import MANIFEST, PARAMS, Arrays, complete_steps, mismatches, read_manifest, read_meta
from rrm_jax.errors import RrmError, did_you_mean
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.params import ParamSpec, is_spec, named_specs, param_specs

Kind = Literal["hf", "converted", "run"]
Names = tuple[str, ...]


class Source(Protocol):
    """A model to read. `stacked`: whether its layers are stored stacked. `notes`: what a user should hear of it."""

    kind: Kind
    path: Path
    assets: Path
    config: DecoderConfig
    facts: dict[str, Any]
    notes: list[str]
    stacked: bool

    def dtype(self, names: Names, spec: ParamSpec) -> np.dtype:
        """The dtype one unstacked parameter is stored in."""
        ...

    def read(self, names: Names, spec: ParamSpec) -> np.ndarray:
        """One unstacked parameter (a path and spec of `named_specs`), on the host, in the stored dtype."""
        ...

    def load(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """A (possibly partial) tree of the stored layout, as jax arrays of the abstract leaves' dtype and sharding.

        In the unstacked layout `layers` is a dict keyed "0", "1", ….
        """
        ...

    def fingerprint(self) -> str:
        """A hex digest that names the weights; an HF directory and what was converted from it share it."""
        ...


def resolve_kind(path: str | Path) -> Kind:
    """What kind of model directory `path` is. Raises RrmError when it is none, or one that was never finished."""
    path, step = split_step(Path(path))
    if step is not None:
        return "run"
    if not path.exists():
        left = incomplete_name(path)
        hint = f"; an interrupted run left {left}, run it again" if path.name and left.exists() else ""
        beside = [str(one) for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
        raise RrmError(f"{path} does not exist{hint or did_you_mean(str(path), beside)}")
    if not path.is_dir():
        raise RrmError(f"{path} is a file; a model is a directory")
    if (path / MANIFEST).is_file():
        return "converted"
    if is_incomplete(path.resolve()) or (path / PARAMS).is_dir():
        raise RrmError(f"{path} is incomplete: its conversion was interrupted; convert the model again")
    if (path / "checkpoints").is_dir():
        return "run"
    if (path / CONFIG).is_file() or any(path.glob("*.safetensors*")):
        return "hf"
    raise RrmError(
        f"{path} is not a model: it has neither config.json and *.safetensors (Hugging Face), nor {MANIFEST} "
        "(converted), nor checkpoints/ (a training run)"
    )


def open_source(path: str | Path) -> Source:
    """Opens a model directory and checks, without reading weights, that it holds what its config.json describes."""
    (path, step), kind = split_step(Path(path)), resolve_kind(path)
    if kind == "run":
        lora = read_lora(path)
        return RunSource(path, step) if lora is None else LoraRunSource(path, step, lora)
    return {"hf": HfSource, "converted": ConvertedSource}[kind](path)


class HfSource:
    """A directory as Hugging Face lays it out, its weights in safetensors; RrmError for weights that do not fit."""

    kind: Kind = "hf"
    stacked = False

    def __init__(self, path: Path):
        self.path = self.assets = path
        self.config = read_config(path)
        self._weights = HfWeights(path, self.config)
        self.notes = self._weights.notes
        self.facts = read_json(path / FACTS) if (path / FACTS).is_file() else {}
        self._specs = _unstacked_specs(self.config)

    def dtype(self, names: Names, spec: ParamSpec) -> np.dtype:
        """As `Source` has it."""
        return self._weights.dtype(spec)

    def read(self, names: Names, spec: ParamSpec) -> np.ndarray:
        """As `Source` has it."""
        return self._weights.read(spec)

    def load(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """As `Source` has it, one tensor at a time."""
        return _place_each(self, self._specs, abstract)

    def fingerprint(self) -> str:
        """As `Source` has it: of a sample of every tensor, so that no weight is read whole."""
        return fingerprint.combine(
            (spec.hf, self._weights.dtype(spec), spec.hf_shape, self._weights.sample(spec))
            for spec in self._specs.values()
        )


class ConvertedSource:
    """A checkpoint by `rrm convert`: unstacked parameters, kept by Orbax. RrmError for arrays that do not fit."""

    kind: Kind = "converted"
    stacked = False

    def __init__(self, path: Path):
        self.path = self.assets = path
        self.manifest = read_manifest(path)
        self.config = read_config(path)
        self.facts, self.notes = dict(self.manifest.get("facts") or {}), []
        self._arrays = Arrays(path / PARAMS)
        shapes = {".".join(names): spec.shape for names, spec in named_specs(self.config)}
        _check(path, mismatches(self._arrays.stored, shapes, path / PARAMS))

    def dtype(self, names: Names, spec: ParamSpec) -> np.dtype:
        """As `Source` has it."""
        return np.dtype(self._arrays.stored[".".join(names)].dtype)

    def read(self, names: Names, spec: ParamSpec) -> np.ndarray:
        """As `Source` has it."""
        return self._arrays.read(".".join(names))

    def load(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """As `Source` has it; each process reads its own shards."""
        return self._arrays.load(abstract)

    def fingerprint(self) -> str:
        """As `Source` has it: the one that was taken of the original."""
        return str(self.manifest["fingerprint"])


class RunSource:
    """A complete step of a training run ("40", "best"; None: the latest). Its parameters are stacked, in float32."""

    kind: Kind = "run"
    stacked = True

    def __init__(self, path: Path, wanted: str | None):
        self.path, self.assets = path, path / "assets"
        self.config = read_config(self.assets)
        self.steps = complete_steps(path / "checkpoints")
        number = chosen_step(path, wanted, self.steps)
        step = path / "checkpoints" / str(number)
        self.facts: dict[str, Any] = {"step": number} | dict(read_meta(step).get("facts") or {})
        self.notes: list[str] = []
        self._open(step)

    def _open(self, step: Path) -> None:
        self._arrays = Arrays(step, PARAMS)
        specs = jax.tree.leaves_with_path(param_specs(self.config, stacked=True), is_leaf=is_spec)
        self._specs = {jax.tree_util.keystr(keys, simple=True, separator="."): spec for keys, spec in specs}
        shapes = {name: spec.shape for name, spec in self._specs.items()}
        _check(self.path, mismatches(self._arrays.stored, shapes, step / PARAMS))

    @staticmethod
    def _locate(names: Names) -> tuple[str, int | None]:
        if names[0] != "layers":
            return ".".join(names), None
        return ".".join(("layers", *names[2:])), int(names[1])

    def dtype(self, names: Names, spec: ParamSpec) -> np.dtype:
        """As `Source` has it."""
        return np.dtype(self._arrays.stored[self._locate(names)[0]].dtype)

    def read(self, names: Names, spec: ParamSpec) -> np.ndarray:
        """As `Source` has it: one layer of a stacked array."""
        return self._arrays.read(*self._locate(names))

    def load(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """As `Source` has it; each process reads its own shards."""
        return self._arrays.load(abstract)

    def fingerprint(self) -> str:
        """Of the norms and biases alone: in float32 every step moves them, and they are read in no time."""
        digest = hashlib.sha256()
        for name, spec in sorted(self._specs.items()):
            if "embed" not in spec.axes:
                digest.update(name.encode() + self._arrays.read(name).tobytes())
        return digest.hexdigest()


class LoraRunSource(RunSource):
    """A complete step of a run that trained adapters: the base with them added, in float32.

    One matrix at a time is read and added to on the host, so that no second copy of the model exists.
    """

    stacked = False

    def __init__(self, path: Path, wanted: str | None, lora: Lora):
        self._lora = lora
        super().__init__(path, wanted)

    def _open(self, step: Path) -> None:
        self._specs = _unstacked_specs(self.config)
        self._adapters = Adapters(step, self.config, self._lora)
        try:
            self._base = open_source(self._lora.base)
        except RrmError as error:
            raise RrmError(
                f"{self.path} holds adapters of {self._lora.base}, which is needed to read them: {error}\n"
                f"  put it back, or set model.path in {self.path / CONFIG_YAML} to where it is now"
            ) from None
        recorded, found = self.facts.get("base_fingerprint"), self._base.fingerprint()
        if recorded != found:
            raise RrmError(
                f"{self.path} holds adapters of another model than {self._lora.base} is now: fingerprint {recorded}, "
                f"not {found}; put back the one it was trained on, or set model.path in {self.path / CONFIG_YAML} to it"
            )
        self.notes += self._base.notes

    def dtype(self, names: Names, spec: ParamSpec) -> np.dtype:
        """float32: what adapters are added in."""
        return np.dtype(np.float32)

    def read(self, names: Names, spec: ParamSpec) -> np.ndarray:
        """As `Source` has it, with the adapter added."""
        return self._adapters.add(names, self._base.read(names, spec))

    def load(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """As `Source` has it, one matrix at a time."""
        return _place_each(self, self._specs, abstract)

    def fingerprint(self) -> str:
        """As `Source` has it: of the adapters and of the base's."""
        return self._adapters.fingerprint(self.facts["base_fingerprint"])


def _unstacked_specs(config: DecoderConfig) -> dict[str, ParamSpec]:
    return {".".join(names): spec for names, spec in named_specs(config)}


def _place_each(source: Source, specs: Mapping[str, ParamSpec], abstract: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of unstacked parameters, each read on the host, cast and sent to its devices before the next."""

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = specs[name]
        tensor = cast(source.read(tuple(name.split(".")), spec), np.dtype(leaf.dtype), spec.hf)
        return jax.make_array_from_callback(spec.shape, leaf.sharding, lambda index: tensor[index])

    return jax.tree.map_with_path(place, abstract)


def _check(path: Path, problems: list[str]) -> None:
    refuse(f"{path} does not hold the model its {CONFIG} describes", problems)
