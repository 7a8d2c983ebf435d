"""The plain files of a model directory (config, tokenizer, facts), and directories that appear only when whole."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rrm_jax.errors import RrmError
from rrm_jax.models.config import ConfigError, DecoderConfig, from_hf

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
JUDGE_TEMPLATE = "judge_template.toml"  # the prompt that a judge was trained with
ASSETS = (CONFIG, GENERATION_CONFIG, JUDGE_TEMPLATE, *TOKENIZER_FILES)
FACTS = "rrm_facts.json"
_INCOMPLETE = ".incomplete"
_SHOWN = 20  # problems listed in one message


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raises one RrmError that lists `problems`, if there are any."""
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise RrmError(f"{what}:\n  " + "\n  ".join([*problems[:_SHOWN], *more]))


def copy_assets(src: str | Path, dst: str | Path) -> list[str]:
    """Copies, byte for byte, what exists of `ASSETS` from directory `src` to `dst` (made if need be).

    Returns the names copied. Raises RrmError when `dst` cannot be written.
    """
    src, dst = Path(src), Path(dst)
    names = [name for name in ASSETS if (src / name).is_file()]
    try:
        dst.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(src / name, dst / name)
    except OSError as error:
        raise RrmError(f"cannot copy {error.filename or src} to {dst}: {error.strerror or error}") from None
    return names


def has_tokenizer(directory: Path) -> bool:
    """A fast one: a tokenizer.json."""
    return (directory / "tokenizer.json").is_file()


def chat_template_source(directory: Path) -> str | None:
    """The file that holds the chat template, if any does."""
    for name in ("chat_template.jinja", "chat_template.json"):
        if (directory / name).is_file():
            return name
    path = directory / "tokenizer_config.json"
    return path.name if path.is_file() and read_json(path).get("chat_template") else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; RrmError names the file and what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RrmError(f"{path} is missing") from None
    except OSError as error:
        raise RrmError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RrmError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RrmError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Indented, with a newline at its end; not atomic: directories that hold it appear when they are whole."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(directory: Path) -> DecoderConfig:
    """The decoder that `directory`/config.json describes. Raises RrmError naming the file."""
    path = directory / CONFIG
    try:
        return from_hf(read_json(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise RrmError(f"{path} is not a usable Qwen2 config: {error}") from None


def with_dtype(hf: dict[str, Any], dtype: str) -> dict[str, Any]:
    """`config.json`'s content saying that the weights are `dtype`, under whichever key it already uses."""
    keys = [key for key in ("dtype", "torch_dtype") if key in hf] or ["torch_dtype"]
    return hf | dict.fromkeys(keys, dtype)


def minimal_generation_config(directory: Path) -> dict[str, Any]:
    """What `generate` needs at least: the ids that begin, end and pad, from config.json or else the tokenizer."""
    hf = read_json(directory / CONFIG)
    declared: dict[str, Any] = {}
    if has_tokenizer(directory) and (directory / "tokenizer_config.json").is_file():
        added = read_json(directory / "tokenizer.json").get("added_tokens") or []
        ids = {token.get("content"): token.get("id") for token in added if isinstance(token, dict)}
        tokenizer = read_json(directory / "tokenizer_config.json")
        for kind in ("bos", "eos", "pad"):
            token = tokenizer.get(f"{kind}_token")
            content = token.get("content") if isinstance(token, dict) else token
            if content in ids:
                declared[f"{kind}_token_id"] = ids[content]
    keys = [f"{kind}_token_id" for kind in ("bos", "eos", "pad")]
    found = {key: hf[key] if hf.get(key) is not None else declared.get(key) for key in keys}
    return {"_from_model_config": True} | {key: value for key, value in found.items() if value is not None}


def incomplete_name(dst: Path) -> Path:
    """Where `dst` is built before it appears."""
    return dst.with_name(f".{dst.name}{_INCOMPLETE}")


def is_incomplete(path: Path) -> bool:
    """Whether this is what a killed writer left, by its name."""
    return path.name.endswith(_INCOMPLETE)


@contextlib.contextmanager
def new_directory(dst: Path) -> Iterator[Path]:
    """Yields an empty sibling of `dst`, which becomes `dst` when the block ends well and is removed when it does not.

    `dst` must not exist. What a killed run left is replaced. With several processes all must come here: the first
    one makes, renames and removes the directory. Errors of the file system are RrmErrors.
    """
    if os.path.lexists(dst):
        raise RrmError(f"{dst} exists already; give another destination or remove it")
    building = incomplete_name(dst)
    try:
        if _is_primary():
            dst.parent.mkdir(parents=True, exist_ok=True)
            if building.exists():
                shutil.rmtree(building)
            building.mkdir()
        barrier("made")
        yield building
        barrier("filled")
        if _is_primary():
            if os.path.lexists(dst):  # rename would replace an empty directory
                raise RrmError(f"{dst} was made by someone else in the meantime")
            building.rename(dst)
        barrier("renamed")
    except BaseException as error:
        if _is_primary():
            _remove_for_good(building)
        if isinstance(error, OSError):
            raise RrmError(f"cannot write {dst}: {error.strerror or error}") from None
        raise


def _remove_for_good(directory: Path) -> None:
    """Removes a directory to which the background writers of a failed save may still be adding files."""
    for _ in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.05)
        if not directory.exists():
            return


def _is_primary() -> bool:
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"rrm_checkpoints_{name}")
