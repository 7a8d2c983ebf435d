"""`rrm data prepare`: a published data set, or any file of one's own, as prepared pairs or questions."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.options import Strict, with_options

if TYPE_CHECKING:
    from rrm_jax.data.snapshot import Snapshot
    from rrm_jax.data.sources.base import Source
    from rrm_jax.data.sources.parts import Assign
    from rrm_jax.data.sources.prepare import Preparation


def _list(wanted: bool) -> None:
    if not wanted:
        return
    from rrm_jax.data.sources import sources

    for name, source in sorted(sources().items()):
        print(f"{name}: {source.kind}" if source.hub else f"{name}: pairs or questions in any file (--columns)")
        if source.hub:
            print(f"  from: {source.hub} ({source.revision}); {source.citation}\n  licence: {source.licence}")
            print(f"  columns: {', '.join(source.columns)}; split: {source.split}")
        if source.parts:
            print(f"  --part: {', '.join(source.parts.names)}")
        if source.takes_prompts:
            print("  --only-prompts-of")
    raise typer.Exit()


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Which rows are taken."""

    split: Annotated[
        str | None, typer.Option(help="The snapshot's split, by its files' names. [default: --list says]")
    ] = None
    part: Annotated[
        str | None, typer.Option(help="A split by rule, of those --list gives. [default: all rows]", show_default=False)
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(help="Another draw of the parts. [default: the authors' where they had one]", show_default=False),
    ] = None
    only_prompts_of: Annotated[
        Path | None,
        typer.Option(help="Only rows with a prompt of this prepared data set, file or directory; blanks count not."),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD=COLUMN,…",
            help="Of generic: where id, query, response_1, response_2, label and source, or query, answer and verifier "
            "are. A column may lie deeper (a.0.b) and may be a list of messages.",
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many records.")] = None


@with_options
def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which data set; see --list.")],
    src: Annotated[Path, typer.Option(help="The snapshot: a file, or a directory as the hub or datasets write it.")],
    out: Annotated[
        Path, typer.Option(help="Directory of the prepared data set. OUT.skipped.jsonl and OUT.run.json stand beside.")
    ],
    choice: _Choice,
    strict: Strict = False,
    list_: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list, help="Print which data sets there are, and stop.")
    ] = False,
) -> None:
    """Prepare a published data set, or a file of your own, for training and synthesis.

    SRC is a snapshot on this machine: Parquet, JSON lines (also .gz), a JSON list, CSV, or what save_to_disk writes.
    Nothing in it is run. Its columns are checked before anything is written. Rows become pairs, the better response
    first, or questions, each with an id made from its content; a second row of the same content is left out. Rows that
    give no record (identical responses, an empty query or response, no answer, a malformed row) are counted by reason
    and listed in OUT.skipped.jsonl with file and row.

    OUT appears when it is complete; killed and started again, the job begins anew. Malformed rows are reported and
    passed over (exit code 1).

    \b
    Example:
      rrm data prepare --list
      rrm data prepare skywork-reward --src Skywork-Reward-Preference-80K-v0.2 --part train --out data/skywork
      rrm data prepare tulu3-prompts --src llama-3.1-tulu-3-405b-preference-mixture --part train --out data/prompts
      rrm data prepare tulu3-preferences --src llama-3.1-tulu-3-405b-preference-mixture \\
        --only-prompts-of data/prompts --out data/tulu
      rrm data prepare generic --src mine.parquet --columns query=prompt,response_1=chosen,response_2=rejected \\
        --out data/mine
    """
    from rrm_jax.cli.data.skipped_rows import SkippedRows
    from rrm_jax.cli.loading import Progress, warn
    from rrm_jax.data.builders import builder_of
    from rrm_jax.data.prepared import write_prepared
    from rrm_jax.data.snapshot import open_snapshot
    from rrm_jax.data.sources import get_source
    from rrm_jax.data.sources.prepare import MALFORMED, Preparation
    from rrm_jax.provenance import pinned

    source = _configured(get_source(name), choice)
    snapshot = open_snapshot(src, choice.split, source.split)
    snapshot.check_columns(source.columns, source.describe())
    _check_free(out, src)
    prompts = _prompt_keys(choice.only_prompts_of)
    preparation = Preparation(source, snapshot, prompts)
    config, inputs = _facts(source, snapshot, choice)
    run = out.with_name(f"{out.name}.run.json")
    with pinned(run, config=config, seed=config["seed"], inputs=inputs, anew=True):
        preparation.part, preparation.limit = _part(preparation, choice, config["seed"]), choice.limit
        listed = out.with_name(f"{out.name}.skipped.jsonl")
        with SkippedRows(listed, strict) as log, Progress("preparing", snapshot.count()) as progress:
            preparation.skip, preparation.progress = log.add, progress.advance
            write_prepared(out, builder_of(source), log.complete_after(preparation), kind=source.kind, facts=config)
    print("\n".join(preparation.tally.lines()))
    if preparation.tally.skipped[MALFORMED]:
        warn(f"{preparation.tally.skipped[MALFORMED]} malformed row(s) of {src} were skipped; see {log.path}")
        raise typer.Exit(1)


def _configured(source: "Source", choice: _Choice) -> "Source":
    """The source with the columns the user names. Raises RrmError where an option is not for this source."""
    from rrm_jax.errors import RrmError

    if choice.part is not None and (source.parts is None or choice.part not in source.parts.names):
        there_are = f"choose among {', '.join(source.parts.names)}" if source.parts else "it has no parts"
        raise RrmError(f"--part {choice.part}: {source.name} has no such part; {there_are}")
    if choice.seed is not None and choice.part is None:
        raise RrmError("--seed draws the parts; it needs --part")
    if choice.only_prompts_of is not None and not source.takes_prompts:
        raise RrmError(f"--only-prompts-of is not for {source.name}; see --list")
    if choice.columns is None:
        return source
    if source.configure is None:
        raise RrmError(f"--columns is for generic; {source.name} knows its columns")
    fields = [field.partition("=") for field in choice.columns.split(",")]
    for field, _, column in fields:
        if not field.strip() or not column.strip() or [name.strip() for name, _, _ in fields].count(field.strip()) > 1:
            raise RrmError(f"--columns {choice.columns!r}: each field once, as FIELD=COLUMN, with commas between")
    return source.configure({field.strip(): column.strip() for field, _, column in fields})


def _check_free(out: Path, src: Path) -> None:
    from rrm_jax.errors import RrmError

    if out.exists():
        raise RrmError(f"{out} exists; remove it, or choose another --out")
    if src.is_dir() and out.resolve().is_relative_to(src.resolve()):
        raise RrmError(f"--out {out} lies in the snapshot {src}; choose another")


def _prompt_keys(path: Path | None) -> frozenset[bytes] | None:
    """Keys of a file's queries: of a prepared data set, or of the first of these columns that a snapshot has."""
    from rrm_jax.data.prepared import is_prepared, open_prepared
    from rrm_jax.data.snapshot import open_snapshot
    from rrm_jax.data.sources.base import prompt_key
    from rrm_jax.errors import RrmError

    if path is None:
        return None
    if is_prepared(path):
        return frozenset(prompt_key(record.query) for record in open_prepared(path))
    snapshot, names = open_snapshot(path), ("query", "prompt", "question", "problem")
    rows = (row for _, _, row in snapshot.rows(names) if isinstance(row, dict))
    texts = (next((row[name] for name in names if isinstance(row.get(name), str)), None) for row in rows)
    keys = frozenset(prompt_key(text) for text in texts if text is not None)
    if not keys:
        raise RrmError(f"--only-prompts-of {path} has no text in a column {', '.join(names)}")
    return keys


def _part(preparation: "Preparation", choice: _Choice, seed: int | None) -> "tuple[str, Assign] | None":
    parts = preparation.source.parts
    if choice.part is None or parts is None or seed is None:
        return None
    return choice.part, parts.assign(preparation.snapshot.count, lambda: preparation, seed)


def _facts(source: "Source", snapshot: "Snapshot", choice: _Choice) -> tuple[dict[str, Any], dict[str, str | Path]]:
    """The settings and the inputs that OUT.run.json tells."""
    seed = None
    if choice.part is not None and source.parts is not None:
        seed = source.parts.seed if choice.seed is None else choice.seed
    options = dataclasses.asdict(choice) | {"split": snapshot.split, "seed": seed}
    about = {key: getattr(source, key) for key in ("name", "kind", "hub", "revision", "licence", "citation")}
    inputs: dict[str, str | Path] = {snapshot.name_of(path): path for path in snapshot.files}
    prompts = choice.only_prompts_of
    if prompts is not None:
        files = sorted(prompts.rglob("*")) if prompts.is_dir() else [prompts]
        inputs |= {f"only-prompts-of: {file.name}": file for file in files if file.is_file()}
    return about | options, inputs
