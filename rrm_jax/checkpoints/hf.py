"""Hugging Face model directories: safetensors read and written one tensor at a time.

A safetensors file is 8 bytes (little-endian) of header length, a JSON header {name: {dtype, shape, data_offsets}},
and the tensors' bytes. Tensors are read with plain reads into fresh memory: mapped files would stay resident.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rrm_jax.checkpoints import fingerprint
from rrm_jax.checkpoints.assets import refuse, write_json
from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.params import ParamSpec, named_specs

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100 * 2**20  # the format's own limit
_BLOCK = 16 * 2**20


def parse_dtype(wanted: Any) -> np.dtype:
    """A dtype that weights can be stored in, from its usual name or anything NumPy takes for it."""
    name = wanted if isinstance(wanted, str) else np.dtype(wanted).name
    for dtype in DTYPES.values():
        if dtype.name == name:
            return dtype
    raise RrmError(f"dtype {name!r} is not one of {', '.join(dtype.name for dtype in DTYPES.values())}")


def cast(tensor: np.ndarray, dtype: np.dtype | None, name: str) -> np.ndarray:
    """`tensor` in `dtype` (None: as it is), rounded to nearest even.

    Raises RrmError, naming the tensor, where float16 would turn a finite value into infinity.
    """
    if dtype is None or tensor.dtype == dtype:
        return tensor
    with np.errstate(over="ignore"):
        result = tensor.astype(dtype)
    if dtype == np.float16:
        limit = np.float32(np.finfo(np.float16).max)
        for rows in _blocks(tensor.reshape(-1)):
            largest = np.max(np.abs(rows.astype(np.float32)), initial=0)
            if limit + 16 <= largest < np.inf:  # from 65520 on, rounding gives infinity
                raise RrmError(f"{name} holds {largest:g}, beyond float16's {limit:g}; keep bfloat16 or float32")
    return result


def _blocks(flat: np.ndarray) -> Iterator[np.ndarray]:
    step = _BLOCK // flat.itemsize
    for at in range(0, flat.size, step):
        yield flat[at : at + step]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one tensor lies. `start` counts from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> tuple[dict[str, Entry], list[str]]:
    """The tensors of one safetensors file, and what is wrong with single ones of them.

    Raises RrmError, naming the file, when it is no safetensors file at all.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb", buffering=0) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start[:7] == b"version":
                raise RrmError(f"{path} is a git-lfs pointer, not the weights themselves; fetch it with `git lfs pull`")
            if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
                raise RrmError(
                    f"{path} is not a safetensors file, or is cut short: "
                    f"its header should have {length} bytes, the whole file has {size}"
                )
            header = json.loads(_read_exactly(file, path, 8, length))
    except OSError as error:
        raise RrmError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RrmError(f"{path} is not a safetensors file: its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise RrmError(f"{path} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    entries, problems = {}, []
    for name, facts in header.items():
        try:
            begin, end = (int(offset) for offset in facts["data_offsets"])
            shape = tuple(int(extent) for extent in facts["shape"])
            entry = Entry(path, str(facts["dtype"]), shape, 8 + length + begin, end - begin)
            if begin < 0 or end < begin or any(extent < 0 for extent in shape):
                raise ValueError
        except (TypeError, KeyError, ValueError):
            problems.append(f"{name} in {path}: its header entry {facts!r} is not valid")
            continue
        entries[name] = entry
        if entry.start + entry.size > size:
            problems.append(
                f"{name} in {path}: truncated, it ends at byte {entry.start + entry.size}, the file at {size}"
            )
    return entries, problems


def _read_exactly(file: Any, path: Path, start: int, size: int) -> bytearray:
    buffer = bytearray(size)
    _fill(file, path, start, memoryview(buffer))
    return buffer


def _fill(file: Any, path: Path, start: int, view: memoryview) -> None:
    file.seek(start)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise RrmError(f"{path} ends at byte {start + done}, {len(view) - done} bytes before it should")
        done += count


def _files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a model directory, and the index's tensor → file map (empty without an index)."""
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        return [single], {}
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
            if not names or any(Path(name).name != name for name in names):
                raise ValueError
        except OSError as error:
            raise RrmError(f"cannot read {index}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise RrmError(f"{index} is not a safetensors index: it lacks a weight_map of file names") from None
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise RrmError(f"{index} names {', '.join(absent)}, which {directory} does not hold")
        return [directory / name for name in names], weight_map
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"; {pickled[0]} is pickled, which is never read: save the model as safetensors first" if pickled else ""
        raise RrmError(f"{directory} holds no *.safetensors file{hint}")
    return files, {}


def _read_headers(directory: Path) -> tuple[dict[str, Entry], list[str]]:
    files, weight_map = _files(directory)
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for file in files:
        found, wrong = read_header(file)
        problems += wrong
        for name in found.keys() & entries.keys():
            problems.append(f"{name} is both in {entries[name].file} and in {file}")
        entries |= found
    for name, file_name in weight_map.items():
        if name not in entries:
            problems.append(f"{name}: {directory / INDEX} says it is in {file_name}, which does not hold it")
        elif entries[name].file.name != file_name:
            problems.append(f"{name} is in {entries[name].file}, though {INDEX} says {file_name}")
    return entries, problems


class HfWeights:
    """The checked tensors of a Hugging Face directory, read one at a time.

    Raises RrmError listing every tensor that is missing, extra, misshapen, of a wrong dtype or truncated.
    `notes` says what was passed over.
    """

    def __init__(self, directory: Path, config: DecoderConfig):
        entries, problems = _read_headers(directory)
        self.notes: list[str] = []
        specs = {spec.hf: spec for _, spec in named_specs(config)}
        ignored = [name for name in entries if name.endswith("rotary_emb.inv_freq")]
        if ignored:
            self.notes.append(f"ignored {len(ignored)} rotary_emb.inv_freq buffer(s): they follow from config.json")
        tied_head = entries.get(HEAD) if config.tied_embeddings else None
        problems += _mismatches(directory, specs, entries, {*ignored, *([HEAD] if tied_head else [])})
        refuse(f"{directory} does not hold the model its config.json describes", problems)
        if tied_head:
            self._check_tied(tied_head, entries[EMBEDDING])
        self._entries = {name: entries[name] for name in specs}

    def _check_tied(self, head: Entry, embedding: Entry) -> None:
        same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
        if not same or any(a != b for a, b in zip(_stream(head), _stream(embedding), strict=True)):
            raise RrmError(
                f"{HEAD} in {head.file} differs from {EMBEDDING}, though config.json ties them; "
                "set tie_word_embeddings to false to keep both, or remove it"
            )
        self.notes.append(f"ignored {HEAD}: config.json ties it to {EMBEDDING}, which it equals")

    def dtype(self, spec: ParamSpec) -> np.dtype:
        """As it is stored."""
        return DTYPES[self._entries[spec.hf].dtype]

    def read(self, spec: ParamSpec) -> np.ndarray:
        """One unstacked parameter, in `spec.shape` and the file's dtype."""
        entry = self._entries[spec.hf]
        tensor = np.empty(spec.shape, DTYPES[entry.dtype])
        self._fill(entry, entry.start, tensor)
        return tensor

    def sample(self, spec: ParamSpec) -> bytes:
        """The bytes that `fingerprint.rows_of` gives, without reading the others."""
        entry, rows = self._entries[spec.hf], fingerprint.sampled_rows(spec.hf_shape)
        width = entry.size if len(rows) == 1 else entry.size // spec.hf_shape[0]
        sampled = np.empty((len(rows), width), np.uint8)
        for at, row in enumerate(rows):
            self._fill(entry, entry.start + row * width, sampled[at])
        return sampled.tobytes()

    @staticmethod
    def _fill(entry: Entry, start: int, array: np.ndarray) -> None:
        try:
            with open(entry.file, "rb", buffering=0) as file:
                _fill(file, entry.file, start, memoryview(array.reshape(-1).view(np.uint8)))
        except OSError as error:
            raise RrmError(f"cannot read {entry.file}: {error.strerror or error}") from None


def _mismatches(directory: Path, specs: Mapping[str, ParamSpec], entries: Mapping[str, Entry], ignored: set[str]):
    for name, spec in specs.items():
        entry = entries.get(name)
        if entry is None:
            hint = "; its config.json does not say that embeddings are tied" if name == HEAD else ""
            yield f"{name} is missing from {directory}{hint}"
        elif entry.shape != spec.hf_shape:
            yield f"{name} in {entry.file}: shape {list(entry.shape)}, config.json asks for {list(spec.hf_shape)}"
        elif entry.dtype not in DTYPES:
            yield f"{name} in {entry.file}: dtype {entry.dtype} is not one of {', '.join(DTYPES)}"
        elif entry.size != int(np.prod(entry.shape)) * DTYPES[entry.dtype].itemsize:
            yield f"{name} in {entry.file}: {entry.size} bytes do not make {entry.dtype} {list(entry.shape)}"
    for name in entries.keys() - specs.keys() - ignored:
        yield f"{name} in {entries[name].file} is not a parameter of this model"


def _stream(entry: Entry) -> Iterator[bytearray]:
    with open(entry.file, "rb", buffering=0) as file:
        for at in range(0, entry.size, _BLOCK):
            yield _read_exactly(file, entry.file, entry.start + at, min(_BLOCK, entry.size - at))


def write_safetensors(
    directory: Path,
    planned: Mapping[tuple[str, ...], tuple[ParamSpec, np.dtype]],
    read: Callable[[tuple[str, ...]], np.ndarray],
    max_shard_bytes: int,
) -> None:
    """Writes `model.safetensors`, or several shards of at most `max_shard_bytes` of tensors and their index.

    `planned` says in what order, and in which dtype, `read(names)` gives the tensors, one at a time. A tensor larger
    than a shard gets one of its own.
    """
    shards: list[list[tuple[str, ...]]] = [[]]
    filled = total = 0
    for names, (spec, dtype) in planned.items():
        size = int(np.prod(spec.hf_shape)) * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(names)
        filled, total = filled + size, total + size
    files = [f"model-{at:05d}-of-{len(shards):05d}.safetensors" for at in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    else:
        weight_map = {planned[names][0].hf: file for file, shard in zip(files, shards, strict=True) for names in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for file, shard in zip(files, shards, strict=True):
        _write_shard(directory / file, {names: planned[names] for names in shard}, read)


def _write_shard(
    path: Path,
    planned: Mapping[tuple[str, ...], tuple[ParamSpec, np.dtype]],
    read: Callable[[tuple[str, ...]], np.ndarray],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec, dtype in planned.values():
        end = at + int(np.prod(spec.hf_shape)) * dtype.itemsize
        header[spec.hf] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(spec.hf_shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for names in planned:
            file.write(memoryview(np.ascontiguousarray(read(names)).reshape(-1).view(np.uint8)))
