"""`rrm data clean`: without duplicates, benchmarks' prompts, rows too long or too short, other languages."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rrm_jax.cli.options import Strict, with_options

if TYPE_CHECKING:
    from rrm_jax.data.cleaning import Cleaning, Contamination, Filter, Reason
    from rrm_jax.data.row_files import RawRow
    from rrm_jax.evaluation.cleaning_report import Left


@dataclasses.dataclass(frozen=True)
class _Duplicates:
    """Rows that others repeat."""

    keep_problems: Annotated[
        bool,
        typer.Option(
            "--keep-problems",
            help="Keep rows with an empty query or response, with twice the same response, or with another row's id.",
        ),
    ] = False
    exact: Annotated[bool, typer.Option("--exact", help="Drop rows whose texts are an earlier row's.")] = False
    near: Annotated[
        float | None,
        typer.Option(
            min=0.3,
            max=0.98,
            help="Drop rows that share this much of their word 5-grams with an earlier row (Jaccard), such as 0.8.",
            show_default=False,
        ),
    ] = None
    by: Annotated[
        Literal["texts", "query"],
        typer.Option(help="What --exact and --near compare: query and responses, or the query alone."),
    ] = "texts"
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of --near's hashes.")] = 0


@dataclasses.dataclass(frozen=True)
class _Against:
    """Contamination."""

    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Drop rows whose query overlaps with a prompt of this benchmark: a prepared data set, a file or a "
            "snapshot with a column query, prompt, question, problem, instruction or input. Can be repeated.",
            show_default=False,
        ),
    ] = None
    ngram: Annotated[int, typer.Option(min=1, help="Words in a row that count as the same.")] = 8
    overlap: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Least share of the query's or of the prompt's n-grams.")
    ] = 0.5


@dataclasses.dataclass(frozen=True)
class _Lengths:
    """Tokens."""

    tokenizer: Annotated[
        Path | None, typer.Option(help="A model, or a directory with a tokenizer's files.", show_default=False)
    ] = None
    max_query_tokens: Annotated[int | None, typer.Option(min=1, help="Longest query.", show_default=False)] = None
    max_response_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response.", show_default=False)] = None
    min_response_tokens: Annotated[int | None, typer.Option(min=1, help="Shortest response.", show_default=False)] = (
        None
    )


@dataclasses.dataclass(frozen=True)
class _Language:
    """Languages."""

    languages: Annotated[
        str | None, typer.Option(metavar="en,zh", help="Drop queries in other languages.", show_default=False)
    ] = None
    language_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Only where another language is this sure.")
    ] = 0.8
    language_of_responses: Annotated[
        bool, typer.Option("--language-of-responses", help="Look at the responses as well.")
    ] = False


@with_options
def command(
    data: Annotated[
        Path | None,
        typer.Option(help="Pairs, questions or candidates: JSONL, or a prepared data set.", show_default=False),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(help="What is kept, in the form of DATA. OUT.dropped.jsonl and OUT.run.json stand beside.")
    ],
    duplicates: _Duplicates,
    against: _Against,
    lengths: _Lengths,
    language: _Language,
    undo: Annotated[
        Path | None,
        typer.Option(help="Instead of --data: an earlier OUT, whose input is written to --out.", show_default=False),
    ] = None,
    strict: Strict = False,
) -> None:
    """Drop duplicates, benchmarks' prompts, rows too long or too short, other languages; undo it.

    Each filter is switched on by its option; only rows with an empty text, twice the same response or an id used
    before are dropped by default. A row is counted under the first reason that holds, in this order: empty or
    identical texts, tokens, language, contamination, exact duplicates, repeated ids, near duplicates; of duplicates
    the first row stays. How many rows each removed is printed, of each source too where rows have `source`.
    Thinking in responses counts for nothing.

    Rows that stay go to OUT as they stand in DATA, byte for byte and in their order. Each other one is in
    OUT.dropped.jsonl with its number, the reason, and what it is like; blank and malformed lines as well. --undo makes
    DATA again of both, byte for byte, or the same prepared data set, and checks that it is. A killed job begins anew;
    OUT appears when it is complete. Malformed rows are reported (exit code 1).

    Duplicates are compared without case, and with any blanks for one. Near ones are looked for by MinHash and then
    compared exactly; of rows just at the limit a few are missed. For contamination punctuation counts for nothing, and
    a text of fewer than --ngram words must be the same as a whole. Maths, code and texts of a few words are in no
    language, and stay.

    \b
    Example:
      rrm data clean --data pairs.jsonl --out clean.jsonl --exact --near 0.8
      rrm data clean --data data/skywork --out data/skywork-clean --against rewardbench.json --against math500.jsonl
      rrm data clean --data pairs.jsonl --out short.jsonl --tokenizer checkpoints/r1-1.5b --max-response-tokens 2048 \\
        --languages en,zh
      rrm data clean --undo clean.jsonl --out pairs-again.jsonl
    """
    from rrm_jax.cli.loading import MalformedRows, Progress, warn
    from rrm_jax.data.cleaned_files import beside, check_out, write_cleaned
    from rrm_jax.data.cleaning import MALFORMED, NEAR, Cleaning
    from rrm_jax.data.near_duplicates import NearDuplicates
    from rrm_jax.data.prepared import content_file
    from rrm_jax.data.row_files import open_rows
    from rrm_jax.errors import RrmError
    from rrm_jax.evaluation.cleaning_report import Left
    from rrm_jax.evaluation.data_page import make_console
    from rrm_jax.provenance import pinned

    groups = (duplicates, against, lengths, language)
    if (data is None) == (undo is None):
        raise RrmError("give --data, what is cleaned, or --undo, what is made as it was")
    if undo is not None:
        _undo(undo, out, groups)
        return
    assert data is not None
    _check_options(*groups)
    rows = open_rows(data)
    check_out(rows, out)
    filters, inputs = _filters(*groups)
    near = None if duplicates.near is None else NearDuplicates(duplicates.near, duplicates.seed)
    names = tuple(name for one in filters for name in one.names) + ((NEAR,) if near is not None else ())
    settings = {key: value for group in groups for key, value in vars(group).items()}
    cleaning, left = Cleaning(rows, filters, near, duplicates.by, MalformedRows(strict=strict)), Left(names)
    inputs, anew = {"data": content_file(data)} | inputs, not out.exists()
    with pinned(beside(out)[1], config=settings, seed=duplicates.seed, inputs=inputs, anew=anew):
        before = rows.fingerprint()
        with Progress("reading", len(rows)) as progress:
            cleaning.decide(progress.advance)
        if len(cleaning.reasons) == len(rows) and rows.prepared is not None:
            raise RrmError("every row would be left out, and no prepared data set is empty")
        with Progress("writing", len(rows)) as progress:
            write_cleaned(rows, _told(cleaning, left, before, progress.advance), out, settings)
    left.print(make_console())
    if count := left.reasons[MALFORMED]:
        warn(f"{count} malformed row(s) of {data} were left out")
        raise typer.Exit(1)


def _told(
    cleaning: "Cleaning", left: "Left", before: str, progress: Callable[[], None]
) -> "Iterator[tuple[RawRow, Reason | None]]":
    """What is to be written, which the report is told of too."""
    from rrm_jax.errors import RrmError

    for row, reason in cleaning.outcomes():
        left.add(row, reason)
        progress()
        yield row, reason
    if cleaning.rows.fingerprint() != before:
        raise RrmError(f"{cleaning.rows.path} was changed while it was cleaned; run again")


def _undo(undo: Path, out: Path, groups: tuple[Any, ...]) -> None:
    from rrm_jax.cli.loading import Progress
    from rrm_jax.data.cleaned_files import restore
    from rrm_jax.errors import RrmError

    given = [
        f"--{field.name.replace('_', '-')}"
        for group in groups
        for field in dataclasses.fields(group)
        if getattr(group, field.name) != field.default
    ]
    if given:
        raise RrmError(f"--undo needs no {', '.join(given)}: what was left out is put back as it was")
    if not undo.exists():
        raise RrmError(f"there is no {undo}")
    with Progress("restoring") as progress:
        count = restore(undo, out, progress.advance)
    print(f"{out}: {count} rows, as they were before {undo} was made")


def _check_options(duplicates: _Duplicates, against: _Against, lengths: _Lengths, language: _Language) -> None:
    from rrm_jax.errors import RrmError

    limits = (lengths.max_query_tokens, lengths.max_response_tokens, lengths.min_response_tokens)
    limited = any(limit is not None for limit in limits)
    if limited != (lengths.tokenizer is not None):
        raise RrmError("limits in tokens need --tokenizer, and --tokenizer needs one of them")
    if None not in limits[1:] and lengths.min_response_tokens > lengths.max_response_tokens:  # type: ignore[operator]
        raise RrmError("--min-response-tokens is above --max-response-tokens: every response would be left out")
    if duplicates.by != "texts" and not duplicates.exact and duplicates.near is None:
        raise RrmError("--by says what --exact and --near compare; give one of them")
    if language.language_of_responses and language.languages is None:
        raise RrmError("--language-of-responses needs --languages")
    chosen = (duplicates.exact, duplicates.near, against.against, limited, language.languages)
    if duplicates.keep_problems and not any(chosen):
        raise RrmError("--keep-problems alone leaves every row in; choose a filter, see --help")


def _filters(
    duplicates: _Duplicates, against: _Against, lengths: _Lengths, language: _Language
) -> "tuple[list[Filter], dict[str, str | Path]]":
    """In their order, and the files that they read."""
    from rrm_jax.data import cleaning
    from rrm_jax.data.language import LanguageFilter

    made: list[Filter] = [] if duplicates.keep_problems else [cleaning.Problems()]
    inputs: dict[str, str | Path] = {}
    if lengths.tokenizer is not None:
        count = _token_counter(lengths.tokenizer, inputs)
        limits = (lengths.max_query_tokens, lengths.max_response_tokens, lengths.min_response_tokens)
        made.append(cleaning.TokenLimits(count, *limits))
    if language.languages is not None:
        codes = [code.strip() for code in language.languages.split(",") if code.strip()]
        told = LanguageFilter(codes, language.language_confidence)
        made.append(cleaning.Languages(told, language.language_of_responses))
    if against.against:
        made.append(_contamination(against, inputs))
    if duplicates.exact:
        made.append(cleaning.Duplicates(duplicates.by))
    if not duplicates.keep_problems:
        made.append(cleaning.RepeatedIds())
    return made, inputs


def _token_counter(directory: Path, inputs: dict[str, str | Path]) -> Callable[[str], int]:
    from rrm_jax.cli.loading import open_tokenizer
    from rrm_jax.data.tokenizer import Tokenizer

    names = [name for name in ("tokenizer.json", "vocab.json", "merges.txt") if (directory / name).is_file()]
    tokenizer = Tokenizer.load(directory) if names else open_tokenizer(directory)
    assert tokenizer is not None
    inputs |= {f"tokenizer: {name}": directory / name for name in names}
    return lambda text: len(tokenizer.encode_text(text))


def _contamination(against: _Against, inputs: dict[str, str | Path]) -> "Contamination":
    from rrm_jax.cli.loading import warn
    from rrm_jax.data.cleaning import Contamination
    from rrm_jax.data.contamination import Benchmarks, read_prompts
    from rrm_jax.data.prepared import FACTS, is_prepared
    from rrm_jax.data.snapshot import open_snapshot
    from rrm_jax.errors import RrmError

    benchmarks, names = Benchmarks(against.ngram, against.overlap), set[str]()
    for path in against.against or ():
        name = path.name if path.is_dir() else f"{path.resolve().parent.name}/{path.stem}"
        name = str(path) if name in names else name
        if name in names:
            raise RrmError(f"--against {path} is given twice")
        names.add(name)
        before = len(benchmarks)
        for id, prompt in read_prompts(path, warn):
            benchmarks.add(name, id, prompt)
        warn(f"{path}: {len(benchmarks) - before} prompts")
        files = [path / FACTS] if is_prepared(path) else open_snapshot(path, default="test").files
        inputs |= {f"against: {name}: {file.name}": file for file in files}
    return Contamination(benchmarks)
