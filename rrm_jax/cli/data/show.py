"""`rrm data show`: a readable look at data files, prepared data sets and mixes of them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.options import Strict, with_options

if TYPE_CHECKING:
    from rrm_jax.cli.loading import MalformedRows
    from rrm_jax.data.overview import Kind
    from rrm_jax.evaluation.data_page import Part
    from rrm_jax.evaluation.prompt_view import View


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """How pairs are shown to a model."""

    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            "--model",
            help="A model, or a directory with a tokenizer's files: count tokens, and show examples as its prompts.",
            show_default=False,
        ),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(help="The judge's prompt: a packaged name or a file. [default: the model's own, else default]"),
    ] = None
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt, in tokens. [default: 4096]", show_default=False)
    ] = None
    direct: Annotated[
        bool | None,
        typer.Option(
            "--direct/--think", help="The verdict at once, or after thinking. [default: as the model, else thinking]"
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class _Look:
    """How much is looked at."""

    examples: Annotated[int, typer.Option(min=0, help="Rows of each part to print, drawn by the seed.")] = 3
    cut: Annotated[
        int, typer.Option(min=0, help="Characters of an example's text between control tokens; 0: all of it.")
    ] = 4000
    sample: Annotated[int, typer.Option(min=1, help="Rows of each part to count tokens of, drawn by the seed.")] = 5000
    all_: Annotated[bool, typer.Option("--all", help="Count the tokens of all rows.")] = False
    near: Annotated[
        float | None,
        typer.Option(
            min=0.3,
            max=0.98,
            help="Count the rows of each part that share this much of their word 5-grams with an earlier one, such as "
            "0.8, as rrm data clean would drop them, but by estimate.",
            show_default=False,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of the stream, and of what is drawn here. [default: the config's, else 0]", show_default=False
        ),
    ] = None


@with_options
def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH", help="JSONL files or prepared data sets. With --config, KEY=VALUE overrides of it instead."
        ),
    ] = None,
    *,
    weights: Annotated[
        str | None, typer.Option(metavar="5,1,1", help="Look at the paths as a mix, drawn from in these proportions.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="YAML", help="Look at the data that rrm train would train on with this config."),
    ] = None,
    prompt: _Prompt,
    look: _Look,
    html: Annotated[Path | None, typer.Option(help="Write what is printed as a page, too.", show_default=False)] = None,
    strict: Strict = False,
) -> None:
    """Show what is in data files: counts, labels, lengths, duplicates, examples.

    Pairs, candidates, questions and judgments are told apart by their fields. Shown are counts by source; empty
    texts, responses that are the same, rows that were there before, or nearly were (--near); labels, and how often
    a trainer shows the better response first; how often the better response is the longer one; lengths, with
    --tokenizer in tokens, of whole prompts too, and how many are cut to fit. Examples are then the judge's prompts
    as their tokens decode: control tokens stand in ⟦ ⟧, which no text of the data can show, what merely spells one
    is underlined, and characters that a terminal would obey are escaped.

    Thinking in responses is left out, as it is for a judge. Malformed rows are reported and passed over (exit code 1).

    \b
    Example:
      rrm data show pairs.jsonl --tokenizer checkpoints/r1-1.5b
      rrm data show data/skywork data/tulu data/labelled.jsonl --weights 5,1,1 --html mix.html
      rrm data show --config rrm_7b.yaml data.train=pairs.jsonl
    """
    from rrm_jax.cli.loading import exit_if_skipped, warn
    from rrm_jax.data.whole_files import write_whole
    from rrm_jax.errors import RrmError
    from rrm_jax.evaluation.data_mix import print_mix
    from rrm_jax.evaluation.data_page import as_html, make_console, print_page
    from rrm_jax.evaluation.prompt_view import Place

    given = [str(path) for path in paths or ()]
    if config is not None:
        if weights is not None:
            raise RrmError("--weights are for paths; a config has its own")
        shares, prompt, look = _from_config(config, given, prompt, look)
    elif not given:
        raise RrmError("name what to look at: PATH…, or --config YAML")
    else:
        shares = _weighed(given, weights)
    seed = look.seed or 0
    view = _view(prompt)
    console = make_console(record=html is not None)
    parts = []
    mixed = len(shares) > 1 and (weights is not None or config is not None)
    for at, (path, weight, limit) in enumerate(shares):
        parts.append(_read(path, weight, limit, look, view, seed, strict))
        print_page(console, parts[-1], Place(seed, at, len(shares)) if mixed else Place(seed), look.cut)
    if mixed:
        print_mix(console, parts, seed)
    if html is not None:
        write_whole(html, as_html(console))
        warn(f"wrote {html}")
    exit_if_skipped(sum(part.skipped for part in parts))


def _weighed(paths: list[str], weights: str | None) -> list[tuple[Path, float, int | None]]:
    from rrm_jax.errors import RrmError

    if weights is None:
        return [(Path(path), 1.0, None) for path in paths]
    try:
        values = [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise RrmError(f"--weights {weights!r} is not of the form 5,1,1") from None
    if len(values) != len(paths) or not all(0 < value < float("inf") for value in values):
        raise RrmError(f"--weights {weights!r}: a positive number for each of the {len(paths)} paths is needed")
    return [(Path(path), value, None) for path, value in zip(paths, values, strict=True)]


def _from_config(
    config: str, overrides: list[str], prompt: _Prompt, look: _Look
) -> tuple[list[tuple[Path, float, int | None]], _Prompt, _Look]:
    """What a training config says; options given here count before it. Without weights of the model here its tokenizer
    cannot be read, and nothing is counted in tokens."""
    from rrm_jax.cli.loading import warn
    from rrm_jax.config import load_config
    from rrm_jax.training.config import TrainConfig

    training = load_config(TrainConfig, config, overrides)
    tokenizer, judge = prompt.tokenizer, training.judge
    if tokenizer is None and Path(training.model.path).is_dir():
        tokenizer = Path(training.model.path)
    elif tokenizer is None:
        warn(f"model.path {training.model.path} is not here: no tokens are counted; name a --tokenizer")
    prompt = _Prompt(
        tokenizer,
        judge.template if prompt.template is None else prompt.template,
        judge.max_prompt_tokens if prompt.max_prompt_tokens is None else prompt.max_prompt_tokens,
        not judge.thinking if prompt.direct is None else prompt.direct,
    )
    look = dataclasses.replace(look, seed=training.seed if look.seed is None else look.seed)
    return [(Path(part.path), part.weight, training.data.limit) for part in training.data.parts], prompt, look


def _view(prompt: _Prompt) -> "View | None":
    from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE
    from rrm_jax.data.tokenizer import Tokenizer
    from rrm_jax.evaluation.prompt_view import View
    from rrm_jax.judging.template import as_trained

    if prompt.tokenizer is None:
        return None
    assets, facts = prompt.tokenizer, {}
    if not any((assets / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        from rrm_jax.checkpoints.sources import open_source

        source = open_source(prompt.tokenizer)
        assets, facts = source.assets, source.facts
    thinking = None if prompt.direct is None else not prompt.direct
    template, thinking = as_trained(assets / JUDGE_TEMPLATE, facts, prompt.template, thinking)
    return View(Tokenizer.load(assets), template, prompt.max_prompt_tokens or 4096, thinking)


def _read(
    path: Path, weight: float, limit: int | None, look: _Look, view: "View | None", seed: int, strict: bool
) -> "Part":
    import itertools

    from rrm_jax.cli.loading import MalformedRows, Progress
    from rrm_jax.data.near_duplicates import NearDuplicates, texts_of
    from rrm_jax.data.overview import Overview, Sample
    from rrm_jax.evaluation.data_page import Near, Part, Tokens
    from rrm_jax.evaluation.judged_overview import Judged

    report = MalformedRows(f"further malformed rows of {path} are only counted")
    kind, count, records = _open(path, strict, report)
    overview: Any = Judged() if kind == "judged" else Overview(kind)
    tokens = Tokens(view) if view is not None and kind != "judged" else None
    near = NearDuplicates(look.near, seed) if look.near is not None and kind != "judged" else None
    sampled = 0 if tokens is None or look.all_ else look.sample
    sample = Sample[Any](max(look.examples, sampled), seed)
    with Progress(f"reading {path}", count if limit is None else min(count, limit)) as progress:
        for record in itertools.islice(records, limit):
            overview.add(record)
            sample.add(str(record["id"] if isinstance(record, dict) else record.id), record)
            if tokens is not None and look.all_:
                tokens.add(record)
            if near is not None:
                near.add(texts_of(record))
            progress.advance()
    drawn = sample.items()
    if tokens is not None and sampled:
        with Progress("counting tokens", len(drawn[:sampled])) as progress:
            for record in drawn[:sampled]:
                tokens.add(record)
                progress.advance()
    counted = Near(near.threshold, len(near.matches())) if near is not None else None
    return Part(str(path), overview, tokens, drawn[: look.examples], weight, report.count, counted)


def _open(path: Path, strict: bool, report: "MalformedRows") -> "tuple[Kind, int, Iterator[Any]]":
    """What a path holds, about how many rows, and the rows."""
    from rrm_jax.data.jsonl import Reader
    from rrm_jax.data.overview import PARSERS, kind_of
    from rrm_jax.data.prepared import open_prepared
    from rrm_jax.data.records import Unique
    from rrm_jax.errors import RrmError
    from rrm_jax.evaluation.judged_overview import parse_judged

    if path.is_dir():
        prepared = open_prepared(path)
        return prepared.kind, len(prepared), iter(prepared)
    unknown: list[str] = []
    try:
        _, kind = next(iter(Reader(path, kind_of, report=unknown.append)))
    except RrmError as error:
        raise RrmError("\n  ".join([str(error), *unknown[:1]])) from None
    parse = PARSERS.get(kind)
    reader = Reader(path, parse_judged if parse is None else Unique(parse), strict=strict, report=report)
    return kind, _lines(path), (row for _, row in reader)


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
