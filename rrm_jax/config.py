"""Typed configuration: frozen pydantic models, read from YAML with `extends:` and dotted overrides."""

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rrm_jax.errors import RrmError, did_you_mean


class Config(BaseModel):
    """Base of every config section: immutable; unknown keys are errors; field docstrings are their help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


def find_config(name: str) -> Path:
    """A YAML file by path, or by its name below the `configs/` that come with the package."""
    for candidate in (Path(name), *(folder / name for folder in _packaged())):
        if candidate.is_file():
            return candidate
    known = [path.relative_to(folder).as_posix() for folder in _packaged() for path in sorted(folder.rglob("*.yaml"))]
    hint = did_you_mean(name, known) or f" ({', '.join(path for path in known if '/' not in path)}, …)"
    raise RrmError(f"no config file {name!r}, neither as a path nor among the package's configs{hint}")


def _packaged() -> list[Path]:
    """Where the package's configurations are: in a wheel, or in a checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "_configs", package.parent / "configs") if folder.is_dir()]


def load_config[C: Config](cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Reads `path` (and what it `extends:`), applies `a.b=value` overrides, and validates.

    Raises RrmError that lists every wrong key with the nearest valid one, and every wrong value with the file's.
    """
    tree = _merge(_read_yaml(find_config(str(path))) if path else {}, _dotted(overrides))
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(cls, dict(problem))}" for problem in error.errors())
        raise RrmError(f"{path or 'the configuration'} is not a valid {cls.__name__}:\n{problems}") from None


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RrmError(f"{path} extends itself")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RrmError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise RrmError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(tree, dict):
        raise RrmError(f"{path} must hold a mapping at its top level, not {type(tree).__name__}")
    if "extends" not in tree:
        return tree
    extends = tree.pop("extends")
    if not isinstance(extends, str):
        raise RrmError(f"{path}: extends must be the path of one file, not {extends!r}")
    bases = [path.parent / extends, *(folder / extends for folder in _packaged())]
    base = next((base for base in bases if base.is_file()), None)
    if base is None:
        raise RrmError(
            f"{path} extends {extends}, which does not exist, neither beside it nor among the package's configs"
        )
    return _merge(_read_yaml(base, (*seen, path.resolve())), tree)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def flat(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """A nested mapping's values by their dotted keys; an empty mapping is a value."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        found += flat(value, f"{above}{key}.") if nested else [(f"{above}{key}", value)]
    return found


def _dotted(overrides: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RrmError(f"override {override!r} is not of the form key=value, e.g. optimizer.learning_rate=1e-6")
        try:
            nested = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RrmError(f"override {override!r}: the value is not valid YAML: {error}") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        tree = _merge(tree, nested)
    return tree


def _explain(cls: type[BaseModel], problem: dict[str, Any]) -> str:
    location = tuple(str(part) for part in problem["loc"])
    where = ".".join(location) or "(top level)"
    if problem["type"] == "missing":
        return f"{where}: a value is required"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']} (got {problem['input']!r})"
    known = [key.rpartition(".") for key in _keys_of(cls)]
    *section, wrong = location
    siblings = [leaf for parent, _, leaf in known if _matches(section, parent)]
    near = [".".join((*section, leaf)) for leaf in difflib.get_close_matches(wrong, siblings, n=1)]
    # Right, but in another section.
    near += [f"{parent}{dot}{leaf}" for parent, dot, leaf in known if leaf == wrong and "*" not in parent]
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(siblings))}"
    return f"{where}: unknown key; {hint}"


def _matches(section: Sequence[str], parent: str) -> bool:
    """Whether a section is that one; `*` is any name."""
    names = parent.split(".") if parent else []
    return len(names) == len(section) and all(name in ("*", given) for name, given in zip(names, section, strict=True))


def _keys_of(cls: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        named = "*." if typing.get_origin(field.annotation) is dict else ""
        for option in typing.get_args(field.annotation) or (field.annotation,):  # Section, Section | None, or many
            if isinstance(option, type) and issubclass(option, BaseModel):
                keys += _keys_of(option, f"{prefix}{name}.{named}")
    return keys
