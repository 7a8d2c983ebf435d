"""A data set's snapshot on this machine: which of its files hold which split, and their rows in order.

It may be one file, or a directory as the Hugging Face hub, `huggingface-cli download`, `Dataset.save_to_disk`,
`DatasetDict.save_to_disk` or anybody else laid it out. The files say by their names what they are; nothing is run.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.table_files import ENDINGS, Row, TableFile
from rrm_jax.errors import RrmError

_SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""The words in the names of files and directories that the hub takes for splits."""

_SHARD = re.compile(r"[-_.]?(?:(\d+)[-_]of[-_](\d+)|0\d{3,})$")
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class _File:
    path: Path
    split: str
    group: str
    """The directories that tell it from files of the same split: the hub's configurations."""
    shard: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The files of one split, in order."""

    root: Path
    split: str
    files: tuple[Path, ...]

    def name_of(self, file: Path) -> str:
        """Of one of its files, below the snapshot's root."""
        return file.name if self.root.is_file() else file.relative_to(self.root).as_posix()

    def check_columns(self, columns: Sequence[str], what: str) -> None:
        """Opens every file. Raises RrmError, with what was expected and what found, where one lacks a column."""
        for path in self.files:
            found = TableFile(path).columns
            missing = [column for column in columns if column not in found]
            if missing:
                raise RrmError(
                    f"{path} is not {what}: column(s) {', '.join(missing)} missing\n  expected: {', '.join(columns)}\n"
                    f"  found: {', '.join(found) or 'none'}"
                )

    def count(self) -> int:
        """How many rows there are, those that cannot be used included."""
        return sum(TableFile(path).count() for path in self.files)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, int, Row | RowError]]:
        """(File's name in the snapshot, row's number in it from 1, row); `columns` as in `TableFile.rows`."""
        for path in self.files:
            name = self.name_of(path)
            for number, row in TableFile(path).rows(columns):
                yield name, number, row


def open_snapshot(path: str | Path, split: str | None = None, default: str = "") -> Snapshot:
    """The files of `split`; without it those of `default`, or of the only split there is.

    Raises RrmError where there is no such path, split or file of data, where shards are missing, or where several
    configurations or formats would be mixed.
    """
    root = Path(path)
    if root.is_file():
        if not root.name.endswith(ENDINGS):
            raise RrmError(f"{root} is not a file of data; one ends with {', '.join(ENDINGS)}")
        name = _split_and_shard(Path(root.name))[0]
        if split not in (None, name):
            raise RrmError(f"--split {split}: {root} is one file, {name!r}; leave --split out to read it whole")
        return Snapshot(root, name, (root,))
    if not root.is_dir():
        raise RrmError(f"there is no file or directory {root}")
    files = list(_find(root))
    if not files:
        raise RrmError(f"{root} holds no file of data (one that ends with {', '.join(ENDINGS)})")
    splits = sorted({file.split for file in files})
    if split is None:
        split = splits[0] if len(splits) == 1 else default
    chosen = [file for file in files if file.split == split]
    if not chosen:
        what = f"has no split {split!r}" if split else "has several splits"
        raise RrmError(f"{root} {what}; choose with --split among {', '.join(splits)}")
    _check_one_kind(root, split, chosen)
    _check_shards(root, chosen)
    return Snapshot(root, split, tuple(file.path for file in chosen))


def _find(root: Path) -> Iterator[_File]:
    """Every file of data below `root`, in the order of names; hidden ones, such as downloaders' caches, left out."""
    directories = [root]
    for directory in directories:  # grows meanwhile
        try:
            entries = sorted(directory.iterdir())
        except OSError as error:
            raise RrmError(f"cannot read {directory}: {error.strerror or error}") from None
        entries = [entry for entry in entries if not entry.name.startswith((".", "_"))]
        if any(entry.name == "state.json" for entry in entries):
            yield from _saved_to_disk(root, directory)
            continue
        directories += [entry for entry in entries if entry.is_dir()]
        for entry in entries:
            if entry.is_file() and entry.name.endswith(ENDINGS) and entry.name not in _METADATA:
                relative = entry.relative_to(root)
                split, shard = _split_and_shard(relative)
                yield _File(entry, split, _group(relative), shard)


def _saved_to_disk(root: Path, directory: Path) -> Iterator[_File]:
    """The files of `Dataset.save_to_disk`, in the order that its state.json gives; its directory is the split."""
    state = directory / "state.json"
    try:
        facts = json.loads(state.read_text(encoding="utf-8"))
        names = [str(file["filename"]) for file in facts["_data_files"]]
        selected = facts.get("_indices_data_files") or facts.get("_indices_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RrmError(f"{state} does not say which files hold the data: {type(error).__name__} {error}") from None
    if selected:
        raise RrmError(f"{directory} is a selection by index; save it again after Dataset.flatten_indices()")
    split = "data" if directory == root else directory.name
    parent = "" if directory == root else _group(directory.relative_to(root))
    for name in names:
        file = directory / Path(name).name
        if not file.is_file():
            raise RrmError(f"{state} names {name!r}, which is not there; the snapshot was not copied whole")
        yield _File(file, split, parent)


def _split_and_shard(relative: Path) -> tuple[str, tuple[int, int] | None]:
    """`data/math-00000-of-00002.parquet` → ("math", (0, 2)), `en/train/0000.parquet` → ("train", None)."""
    stem = relative.name
    for ending in sorted(ENDINGS, key=len, reverse=True):
        stem = stem.removesuffix(ending)
    match = _SHARD.search(stem)
    shard = (int(match[1]), int(match[2])) if match and match[1] else None
    stem = stem[: match.start()] if match else stem
    for name in (stem, *reversed(relative.parent.parts)):
        for word in re.split(r"[^a-zA-Z0-9]+", name.lower()):
            if word in _SPLITS:
                return _SPLITS[word], shard
    return stem or relative.parent.name or "data", shard


def _group(relative: Path) -> str:
    own = (part for part in relative.parent.parts if part not in ("data", "default", "snapshots"))
    return "/".join(part for part in own if part.lower() not in _SPLITS and not _REVISION.fullmatch(part))


def _check_one_kind(root: Path, split: str, files: list[_File]) -> None:
    groups = sorted({file.group for file in files})
    if len(groups) > 1:
        raise RrmError(
            f"{root} has split {split!r} of several configurations: {', '.join(group or '.' for group in groups)}; "
            "give the directory of one of them"
        )
    kinds = re.compile(r"\.(?:parquet|arrow|csv|jsonl|ndjson|json)")
    endings = sorted({"".join(kinds.findall(file.path.name)) for file in files})
    if len(endings) > 1:
        raise RrmError(f"{root} has split {split!r} in several formats ({', '.join(endings)}); give one of its files")


def _check_shards(root: Path, files: list[_File]) -> None:
    present = {file.shard[0] for file in files if file.shard}
    for total in {file.shard[1] for file in files if file.shard}:
        first = 0 if 0 in present else 1  # some count from 1
        missing = sorted(set(range(first, first + total)) - present)
        if missing:
            raise RrmError(
                f"{root} has {total - len(missing)} of {total} shards of split {files[0].split!r}; "
                f"number {', '.join(map(str, missing[:5]))} missing: the snapshot was not copied whole"
            )
