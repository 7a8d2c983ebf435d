"""The reference of configuration files, from the classes that read them: every key, its type, default and help."""

import types
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rrm_jax.training.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def page() -> str:
    lines = [
        "# Configuration",
        "",
        "What `rrm train` reads, from YAML files and from overrides such as `optimizer.learning_rate=1e-6`. A file may "
        "begin from another (`extends: rrm_7b.yaml`); an unknown key is an error that names the nearest one.",
        "",
        "## Files that come with the package",
        "",
        "| file | |",
        "|---|---|",
        *(f"| `{path.relative_to(CONFIGS)}` | {_cell(_about(path))} |" for path in sorted(CONFIGS.rglob("*.yaml"))),
        "",
        *_section(TrainConfig, ""),
    ]
    return "\n".join(lines)


def _about(path: Path) -> str:
    """The first sentence of a file's first comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    taken = []
    for line in lines:
        if not line.startswith("#") or line == "#":
            break
        taken.append(line.lstrip("# "))
    return " ".join(taken).partition(". ")[0].rstrip(".") + "."


def _section(cls: type[BaseModel], prefix: str) -> list[str]:
    """A table of a class's own keys, then its sections'."""
    inner = {name: section for name, field in cls.model_fields.items() if (section := _class_of(field.annotation))}
    lines = [f"## {prefix.rstrip('.') or 'The run'}", ""]
    if prefix and cls.__doc__:
        lines += [_cell(cls.__doc__).replace("\\|", "|"), ""]
    rows = [_row(prefix + name, field) for name, field in cls.model_fields.items() if name not in inner]
    if rows:
        lines += ["| key | values | default | |", "|---|---|---|---|", *rows, ""]
    for name, section in inner.items():
        lines += _section(section, f"{prefix}{name}.")
    return lines


def _class_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, perhaps optionally."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _row(key: str, field: FieldInfo) -> str:
    required = field.is_required()
    default = (
        "required" if required else f"`{yaml.safe_dump(field.get_default(), default_flow_style=True).splitlines()[0]}`"
    )
    return f"| `{key}` | {_cell(_values(field))} | {default} | {_cell(field.description or '')} |"


def _values(field: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [f"{bounds[kind]} {value:g}" for limit in field.metadata for kind in bounds
              if (value := getattr(limit, kind, None)) is not None]  # fmt: skip
    return ", ".join([_type(field.annotation), *limits])


def _type(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join("null" if one is type(None) else _type(one) for one in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return getattr(annotation, "__name__", str(annotation))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
