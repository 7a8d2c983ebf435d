"""`rrm data convert`: preference data from one format to another."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rrm_jax.cli.options import Strict, with_options

if TYPE_CHECKING:
    from rrm_jax.data.conversions import Input
    from rrm_jax.data.formats import Format


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What rows become."""

    split: Annotated[
        str | None, typer.Option(help="The split of a directory, by its files' names.", show_default=False)
    ] = None
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Of candidates: write all pairs of a correct and another response.")
    ] = False
    keep_ties: Annotated[
        bool, typer.Option("--keep-ties", help="Of pandalm: keep pairs without a majority, without a label.")
    ] = False
    new_ids: Annotated[
        bool, typer.Option("--new-ids", help="Make all ids from the content, not only where a row has none.")
    ] = False
    source: Annotated[
        str, typer.Option(metavar="NAME", help="The source of rows that name none.", show_default=False)
    ] = ""


@with_options
def command(
    path: Annotated[Path, typer.Argument(metavar="IN", help="A file, a directory of files, or prepared data.")],
    to: Annotated[
        Literal["rrm", "prepared", "trl", "trl-messages", "rewardbench", "rewardbench2", "llmbar", "verdicts"],
        typer.Option("--to", help="The format to write."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="What ends with .jsonl, .json (a list) or .parquet; of prepared, a directory. OUT.skipped.jsonl and "
            "OUT.run.json stand beside."
        ),
    ],
    rows: _Rows,
    from_: Annotated[
        Literal[
            "rrm", "prepared", "trl", "trl-messages", "rewardbench", "rewardbench2", "llmbar", "pandalm", "verdicts"
        ]
        | None,
        typer.Option("--from", help="The format of IN. [default: by its columns]", show_default=False),
    ] = None,
    strict: Strict = False,
) -> None:
    """Convert preference data between this package's records and other layouts, without losing any of it.

    \b
    rrm           this package's rows: pairs, questions or candidates
    prepared      the same records as a tfds data set of ArrayRecord files
    trl           TRL's preference data, texts: prompt, chosen, rejected
    trl-messages  the same as lists of messages; read also with the prompt within both conversations
    rewardbench   prompt, chosen, rejected, chosen_model, rejected_model, subset, id
    rewardbench2  candidates: prompt, chosen and rejected as lists, models, subset, id
    llmbar        input, output_1, output_2, label
    pandalm       instruction, input, response1, response2, annotator1 to 3; read only. The label is the majority's
    verdicts      a verdict store (OUT.votes.jsonl), only to prepared data, and of such data a store again

    IN is JSON lines (also .gz), a JSON list, Parquet, or a directory as the hub or datasets write it. Chosen responses
    become response_1, and come first; `chosen_was` beside them keeps which response it was, so that writing records
    and reading them gives the same ones. Rows without an id get one made from their content. Other fields of a row are
    kept in JSON; Parquet and prepared data have no place for them, and they are named at the end.

    A query is the one user turn of a conversation, a response one assistant turn, as they stand. Where there are more,
    or a system turn, all turns are written out in one text (User: …, Assistant: …), and the field `turns` keeps them
    as they were for trl-messages. (rrm data prepare reads conversations as the paper's authors do: the first user turn
    only.)

    Pairs without a label have no chosen response: they are counted, listed in OUT.skipped.jsonl, and left out.
    Malformed rows are reported and passed over (exit code 1). OUT appears when it is complete.

    \b
    Example:
      rrm data convert pairs.jsonl --to trl --out pairs.parquet
      rrm data convert llmbar-natural.json --to rrm --source llmbar-natural --out llmbar.jsonl
      rrm data convert reward-bench-2 --to rrm --pairs --out rewardbench2_pairs.jsonl
      rrm data convert out.jsonl.votes.jsonl --from verdicts --to prepared --out votes
    """
    from rrm_jax.cli.data.skipped_rows import SkippedRows
    from rrm_jax.cli.loading import Progress, warn
    from rrm_jax.data.conversions import Conversion, open_input
    from rrm_jax.data.prepared import write_prepared
    from rrm_jax.data.record_builder import RecordsBuilder
    from rrm_jax.data.sources.prepare import MALFORMED
    from rrm_jax.data.table_writer import write_rows
    from rrm_jax.errors import RrmError
    from rrm_jax.provenance import pinned

    if "verdicts" in (from_, to):
        _convert_verdicts(path, from_, to, out, rows)
        return
    source = open_input(path, from_, rows.split)
    kind = "pairs" if rows.pairs else source.kind
    target = _target(to, kind, source, rows, out)
    found = ", by its columns" if from_ is None and source.format is not None else ""
    warn(f"{path}: {source.kind}, {source.name}{found}")
    if out.exists():
        raise RrmError(f"{out} exists; remove it, or choose another --out")
    in_json = target is not None and out.suffix != ".parquet"
    conversion = Conversion(source, target, in_json, rows.pairs, rows.keep_ties, rows.new_ids, rows.source)
    config: dict[str, Any] = {"from": source.name, "to": to, **dataclasses.asdict(rows)}
    listed, run = (out.with_name(out.name + end) for end in (".skipped.jsonl", ".run.json"))
    with (
        pinned(run, config=config, seed=None, inputs={**source.files}, anew=True),
        SkippedRows(listed, strict) as log,
        Progress("converting", source.count()) as progress,
    ):
        conversion.skip, conversion.progress = log.add, progress.advance
        if target is None:
            records = log.complete_after(conversion.records())
            write_prepared(out, RecordsBuilder, records, kind=kind, facts=config | {"inputs": [*source.files]})
        else:
            write_rows(out, log.complete_after(conversion.rows()), target.columns)
    print("\n".join(conversion.tally.lines()))
    if conversion.tally.skipped[MALFORMED]:
        warn(f"{conversion.tally.skipped[MALFORMED]} malformed row(s) of {path} were skipped; see {listed}")
        raise typer.Exit(1)


def _convert_verdicts(path: Path, from_: str | None, to: str, out: Path, rows: _Rows) -> None:
    import contextlib

    from rrm_jax.cli.loading import Progress, warn
    from rrm_jax.data.prepared import Prepared
    from rrm_jax.errors import RrmError
    from rrm_jax.judging.prepared_store import prepare_votes, restore_votes
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.provenance import pinned

    store = to == "prepared"  # else it is to be made
    if not store and (to != "verdicts" or from_ not in (None, "prepared")):
        raise RrmError("verdicts become prepared data, and prepared verdicts a store again; nothing else")
    if rows != _Rows():
        raise RrmError("verdicts are converted as they are; leave the options for rows out")
    if out.exists():
        raise RrmError(f"{out} exists; remove it, or choose another --out")
    config = {"from": "verdicts" if store else "prepared", "to": to}
    problems: list[str] = []
    inputs = {path.name: path} if store else {file.name: file for file in sorted(path.glob("*"))}
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(VoteLog(path, write=False, report=problems.append)) if store else None
        progress = Progress("converting", len(Prepared(path, verdicts=True)) if log is None else len(log))
        run = out.with_name(f"{out.name}.run.json")
        opened.enter_context(pinned(run, config=config, seed=None, inputs={**inputs}, anew=True))
        opened.enter_context(progress)
        if log is None:
            written = restore_votes(path, out, progress.advance)
        else:
            written = prepare_votes(log, out, config, progress.advance)
    print(f"votes written: {written:,}")
    for problem in problems:
        warn(problem)
    if problems:
        raise typer.Exit(1)


def _target(to: str, kind: Any, source: "Input", rows: _Rows, out: Path) -> "Format | None":
    """None: prepared. Raises RrmError where this input, or an option, is not for this output."""
    from rrm_jax.data.formats import FORMATS, own_format
    from rrm_jax.data.table_writer import OUTPUT_ENDINGS
    from rrm_jax.errors import RrmError

    if rows.pairs and source.kind != "candidates":
        raise RrmError(f"--pairs makes pairs of candidates; {source.path} holds {source.kind}")
    if rows.keep_ties and source.name != "pandalm":
        raise RrmError(f"--keep-ties is of pandalm's annotators; {source.path} is {source.name}")
    if to == "prepared":
        if out.suffix in OUTPUT_ENDINGS:
            raise RrmError(f"--out {out}: prepared data is a directory; leave {out.suffix} out")
        return None
    if out.suffix not in OUTPUT_ENDINGS:
        raise RrmError(f"--out {out} must end with one of {', '.join(OUTPUT_ENDINGS)}")
    target = own_format(kind) if to == "rrm" else FORMATS[to]
    if target.kind != kind:
        hint = "; --pairs makes pairs of them" if kind == "candidates" else ""
        raise RrmError(f"--to {to} holds {target.kind}, and {source.path} holds {kind}{hint}")
    return target
