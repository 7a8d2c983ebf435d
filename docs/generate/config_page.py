"""The reference of configuration files, from the classes that read them: every key, its type, default and help."""

import json
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rrm_jax.reproduce.config import ReproduceConfig
from rrm_jax.studies.config import JudgeConfig, JudgingConfig, StudyConfig
from rrm_jax.studies.run import STUDIES
from rrm_jax.training.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
_LONGEST = 200  # characters of a default


def pages() -> dict[str, str]:
    """By their paths on the site."""
    return {
        "reference/config.md": _page("Configuration of training", "rrm train", TRAINING, "", _section(TrainConfig, "")),
        "reference/config_studies.md": _page("Configuration of studies", "rrm study", STUDY, "studies", _studies()),
        "reference/config_reproduce.md": _page(
            "Configuration of the whole paper", "rrm reproduce", SCALE, "reproduce", _section(ReproduceConfig, "")
        ),
    }


TRAINING = (
    "from YAML files and from overrides such as `optimizer.learning_rate=1e-6`. A file may begin from another "
    "(`extends: rrm_7b.yaml`); an unknown key is an error that names the nearest one."
)
STUDY = "one file a study, and overrides such as `judges.RRM.batch_size=64`; NAME is a name that you choose."
SCALE = "one file a scale, which names a file for each of its studies."


def _page(title: str, verb: str, about: str, under: str, sections: list[str]) -> str:
    apart = ("studies", "reproduce")
    files = [path.relative_to(CONFIGS) for path in sorted(CONFIGS.rglob("*.yaml"))]
    files = [path for path in files if (path.parts[0] == under if under else path.parts[0] not in apart)]
    lines = [
        f"# {title}",
        "",
        f"What `{verb}` reads: {about}",
        "",
        "## Files that come with the package",
        "",
        "| file | |",
        "|---|---|",
        *(f"| `{path}` | {_cell(_about(CONFIGS / path))} |" for path in files),
        "",
        *sections,
    ]
    return "\n".join(lines)


def _studies() -> list[str]:
    """Keys that several studies have stand first, and once."""
    lines = _section(StudyConfig, "", "Of every study")
    lines += _section(JudgingConfig, "", "Of studies that judge", [StudyConfig])
    lines += _section(JudgeConfig, "judges.NAME.")
    named: dict[type[BaseModel], list[str]] = {}
    for name, study in STUDIES.items():
        named.setdefault(study.config, []).append(name)
    for cls, names in named.items():
        bases = [StudyConfig, *([JudgingConfig] if issubclass(cls, JudgingConfig) else [])]
        lines += _section(cls, "", " and ".join(names), bases)
    return lines


def _about(path: Path) -> str:
    """The first sentence of a file's first comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    taken = []
    for line in lines:
        if not line.startswith("#") or line == "#":
            break
        taken.append(line.lstrip("# "))
    return " ".join(taken).partition(". ")[0].rstrip(".") + "."


def _section(cls: type[BaseModel], prefix: str, title: str = "", bases: Sequence[type[BaseModel]] = ()) -> list[str]:
    """A table of a class's own keys, without those of its `bases`, then its sections'."""
    fields = {name: field for name, field in cls.model_fields.items() if not any(name in b.model_fields for b in bases)}
    lines = [f"## {title or prefix.rstrip('.') or 'Top level'}", ""]
    if (prefix or bases) and cls.__doc__ and cls.__doc__.rstrip(".") != title:
        lines += [_cell(cls.__doc__).replace("\\|", "|"), ""]
    rows = [_row(prefix + name, field) for name, field in fields.items() if not _is_section(field)]
    if rows:
        lines += ["| key | values | default | |", "|---|---|---|---|", *rows, ""]
    for name, field in fields.items():
        for place, section in _sections(field.annotation):
            path = f"{prefix}{name}{place}."
            if section is JudgeConfig:  # its table stands where judges are
                lines += [] if path == "judges.NAME." else [f"`{path}…` is as `judges.NAME.…`, above.", ""]
                continue
            heading, *table = _section(section, path, f"{title}: {path.rstrip('.')}" if title else "")
            lines += [heading, "", *_said(field), *table[1:]]
    return lines


def _said(field: FieldInfo) -> list[str]:
    """What a section's field says of it, as it has no row of its own."""
    if not _is_section(field):
        return []
    optional = "Off unless it is given; then its defaults are these." if field.default is None else ""
    text = " ".join(filter(None, [field.description, optional]))
    return [_cell(text).replace("\\|", "|"), ""] if text else []


def _is_section(field: FieldInfo) -> bool:
    return any(place == "" for place, _ in _sections(field.annotation))


def _sections(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The sections that a field may hold: it itself (""), each value of a mapping (".NAME"), or of a list ("[…]")."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [("", annotation)]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType or origin is typing.Union:
        return [found for one in arguments for found in _sections(one)]
    inner = {dict: (".NAME", arguments[1:]), tuple: ("[…]", arguments[:1]), list: ("[…]", arguments)}
    place, held = inner.get(origin, ("", ()))
    return [(place + more, section) for one in held for more, section in _sections(one)]


def _row(key: str, field: FieldInfo) -> str:
    default = "required"
    if not field.is_required():
        value = field.get_default(call_default_factory=True)
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) and "\n" in value else _flow(value)
        default = f"`{text if len(text) <= _LONGEST else text[:_LONGEST] + ' …'}`"
    return f"| `{key}` | {_cell(_values(field))} | {default} | {_cell(field.description or '')} |"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).splitlines()[0]


def _values(field: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [f"{bounds[kind]} {value:,}" for limit in field.metadata for kind in bounds
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
        return "what is below"
    return getattr(annotation, "__name__", str(annotation))


def _cell(text: str) -> str:
    """On one line of a table; a tag stays text, and what stands between backticks is as it is."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if at % 2 else part.replace("<", "&lt;") for at, part in enumerate(parts))
