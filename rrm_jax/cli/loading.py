"""What the verbs that run a model share: opening the model, checking input files, showing progress."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rrm_jax.cli.options import DeviceOptions
    from rrm_jax.data.tokenizer import Tokenizer
    from rrm_jax.parallel.mesh import MeshShape
    from rrm_jax.sampling.protocol import Completion, Decoding, Request
    from rrm_jax.sampling.sampler import Sampler
    from rrm_jax.sampling.stats import Stats


_REPORTED = 20


def warn(message: str) -> None:
    """On stderr, at once."""
    print(message, file=sys.stderr, flush=True)


def exit_if_skipped(skipped: int, what: str = "malformed row(s)") -> None:
    """Where rows were skipped, says so on stderr and ends the verb with exit code 1."""
    if skipped:
        warn(f"{skipped} {what} were skipped")
        raise typer.Exit(1)


class MalformedRows:
    """Says the first malformed rows on stderr, then only `rest`, and counts them all; with `strict`, raises at the
    first."""

    def __init__(self, rest: str = "further malformed rows are only counted", strict: bool = False):
        self._rest, self._strict, self.count = rest, strict, 0

    def __call__(self, message: str) -> None:
        """Takes what was wrong with a row, and where. RrmError with `strict`."""
        from rrm_jax.errors import RrmError

        if self._strict:
            raise RrmError(message)
        self.count += 1
        if self.count <= _REPORTED:
            warn(message)
        elif self.count == _REPORTED + 1:
            warn(self._rest)


def parse_mesh(text: str) -> "MeshShape":
    """`data=1,fsdp=-1,tensor=1`, any of them left out. Raises RrmError."""
    from rrm_jax.errors import RrmError
    from rrm_jax.parallel.mesh import AXES, MeshShape

    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        if axis.strip() not in AXES or axis.strip() in sizes or not size.strip().lstrip("-").isdigit():
            raise RrmError(f"--mesh {text!r}: {part!r} is not one of {', '.join(f'{name}=N' for name in AXES)}")
        sizes[axis.strip()] = int(size)
    return MeshShape(**sizes)


def parse_dtype(name: str) -> Any:
    """A jax dtype. Raises RrmError."""
    import jax
    import jax.numpy as jnp

    from rrm_jax.errors import RrmError

    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise RrmError(f"--dtype {name!r} is not one of auto, float32, bfloat16")
    return jnp.dtype(name)


def open_model(
    options: "DeviceOptions", progress: "Callable[[Stats], None] | None", block: int | None = None
) -> "Sampler":
    """Loads a model onto the devices. `block`: as the sampler takes it, its default unless given."""
    import jax
    import jax.numpy as jnp

    from rrm_jax.checkpoints.load import load_model
    from rrm_jax.parallel.mesh import make_mesh
    from rrm_jax.sampling.lookup import PromptLookup
    from rrm_jax.sampling.opening import sampler_of
    from rrm_jax.sampling.sampler import BLOCK

    devices, compute = make_mesh(parse_mesh(options.mesh)), parse_dtype(options.dtype)
    started = time.perf_counter()
    loaded = load_model(options.model, mesh=devices, dtype=compute)
    jax.block_until_ready(loaded.params)
    warn(
        f"loaded {options.model}: {loaded.config.num_parameters / 1e6:,.1f} M parameters in {compute.name} on "
        f"{devices.size} {jax.default_backend()} device(s), {time.perf_counter() - started:.1f} s"
    )
    cache, weights = (None if x == "auto" else jnp.dtype(x) for x in (options.cache_dtype, options.weight_dtype))
    return sampler_of(
        loaded,
        None if devices.size == 1 else devices,
        compute,
        options.batch_size,
        warn,
        block=BLOCK if block is None else block,
        cache_dtype=cache,
        weight_dtype=weights,
        lookup=PromptLookup(options.prompt_lookup) if options.prompt_lookup else None,
        progress=progress,
    )


def open_tokenizer(model: Path, required: bool = True) -> "Tokenizer | None":
    """The tokenizer among a model's assets; where there is none, RrmError or None."""
    from rrm_jax.checkpoints.sources import open_source
    from rrm_jax.data.tokenizer import Tokenizer

    assets = open_source(model).assets
    names = ("tokenizer.json", "vocab.json")
    return Tokenizer.load(assets) if required or any((assets / name).is_file() for name in names) else None


class LazyModel:
    """A `Writer` on this machine's devices, loaded when its first request comes: settings are checked before a weight
    is read, and a job that was done already needs none."""

    takes_messages = False

    def __init__(self, options: "DeviceOptions", progress: "Progress", needs_tokenizer: bool = True):
        from rrm_jax.checkpoints.sources import open_source
        from rrm_jax.sampling.sampler import position_limit

        parse_mesh(options.mesh)
        source = open_source(options.model)
        self.assets, self.facts = source.assets, source.facts
        self.tokenizer = open_tokenizer(options.model, needs_tokenizer)
        self.max_positions, self.vocab_size = position_limit(source.config), source.config.vocab_size
        self.identity = f"{source.fingerprint()} in {parse_dtype(options.dtype).name}"
        for what, dtype in (("cache", options.cache_dtype), ("weights", options.weight_dtype)):
            if dtype != "auto":
                self.identity += f", {what} in {dtype}"
        self.names = [options.model.name, options.model.resolve().name, *_declared_name(source.assets)]
        for note in source.notes:
            warn(note)
        self._load = lambda: open_model(options, progress.show)
        self._sampler: Sampler | None = None

    def check(self, decoding: "Decoding") -> None:
        """The sampler serves all that a Decoding can ask for."""

    def generate(self, requests: "Iterable[Request]") -> "Iterator[Completion]":
        """As `Generator` has it."""
        import itertools

        waiting = iter(requests)
        first = next(waiting, None)
        if first is None:
            return
        if self._sampler is None:
            self._sampler = self._load()
        yield from self._sampler.generate(itertools.chain([first], waiting))


def _declared_name(assets: Path) -> list[str]:
    import json

    name = json.loads((assets / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    return [name] if isinstance(name, str) else []


def fit_positions(max_prompt_tokens: int, max_new_tokens: int, max_positions: int) -> int:
    """The prompt limit that a model with `max_positions` allows; says so when it is less than was asked for."""
    from rrm_jax.sampling.sampler import room_for_prompt

    room = room_for_prompt(max_positions, max_new_tokens, f"--max-new-tokens {max_new_tokens}")
    if room < max_prompt_tokens:
        warn(
            f"the model has {max_positions} positions: prompts are cut to {room} tokens, not {max_prompt_tokens} "
            f"(--max-prompt-tokens), to leave {max_new_tokens} for the answer"
        )
    return min(room, max_prompt_tokens)


def check_rows[T](path: Path, parse: Callable[[dict[str, Any]], T], strict: bool, use: Callable[[T], None]) -> int:
    """Reads a whole file, or prepared data set, once, before anything runs: reports its malformed rows and returns how
    many there are.

    `use` sees every good row. With `strict` a malformed row is an RrmError.
    """
    from rrm_jax.data.prepared import RecordReader

    reader = RecordReader(path, parse, strict=strict, report=warn)
    for _, row in reader:
        use(row)
    return reader.skipped


class Progress:
    """Progress on stderr: a bar on a terminal, else a line every ten seconds and one at the end. Total 0: not known."""

    def __init__(self, label: str, total: int = 0):
        self._label, self._total, self._done, self._note = label, total, 0, ""
        self._started = self._printed = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn(self._label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._label, total=self._total or None, completed=self._done, note="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print()

    def begin(self, done: int, total: int | None = None) -> None:
        """Says how much an earlier run had finished, and how much there is where that was not known before."""
        self._done = done
        self._total = self._total if total is None else total
        self._show()

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        self._show()

    def show(self, stats: object) -> None:
        """For a generator: how it is doing, as `str(stats)` says it."""
        self._note = str(stats)
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, total=self._total or None, note=self._note)
        elif time.monotonic() - self._printed > 10:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._started
        done = f"{self._done}/{self._total}" if self._total else f"{self._done}"
        warn(f"{self._label}: {done} after {seconds:.0f} s" + (f", {self._note}" if self._note else ""))
