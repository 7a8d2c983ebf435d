"""`rrm rank`: the best of many candidates, by pairwise tournaments."""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rrm_jax.cli.backend import open_generator
from rrm_jax.cli.judge_options import JudgeOptions, open_judge
from rrm_jax.cli.loading import Progress, check_rows, warn
from rrm_jax.cli.options import ModelOptions, Strict, with_options
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import Candidates, Unique, parse_candidates
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.ranking.strategies import Elo, Knockout, Result


@with_options
def command(
    models: ModelOptions,
    candidates: Annotated[Path, typer.Option(help="JSONL: id, query, responses [..], and optionally correct [bool].")],
    out: Annotated[Path, typer.Option(help="JSONL of rankings. OUT.votes.jsonl and OUT.run.json stand beside it.")],
    judging: JudgeOptions,
    strategy: Annotated[
        str, typer.Option(help="elo (each pair once, n (n - 1) / 2 comparisons) or knockout (n - 1).")
    ] = "elo",
    invalid: Annotated[
        str, typer.Option(help="A comparison without a winner is a random one's win (random) or a draw (elo only).")
    ] = "random",
    strict: Strict = False,
) -> None:
    """Rank each query's candidate responses, and pick the best, by comparing them in pairs.

    Each row of OUT is {id, best, ranking, ratings, comparisons, votes, tokens, invalid, invalid_votes, cut_off,
    truncated_inputs, forced}: best and ranking (best first) are positions in responses, ratings are Elo ratings or the
    rounds survived in the knockout, invalid counts comparisons without a winner. Every vote shows its pair in a random
    order. Where rows have `correct`, the accuracy of what was picked is printed beside the mean candidate's and the
    oracle's.

    Killed and started again with the same settings it goes on where it was: every vote is kept in OUT.votes.jsonl as
    it comes, and OUT is written in one piece at the end; a server that stays away ends the job with an error (exit code
    2) and is never counted as a verdict. Malformed rows are reported and passed over (exit code 1).

    \b
    Example:
      rrm rank --model runs/judge --candidates candidates.jsonl --out ranked.jsonl --strategy knockout --votes 3
      rrm rank --model runs/judge --backend http://localhost:8000 --backend-model rrm-7b \\
        --candidates candidates.jsonl --out there.jsonl
    """
    from rrm_jax.evaluation.tournament import comparer
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.provenance import write_provenance
    from rrm_jax.ranking.strategies import Item, run_tournaments

    plan = choose_strategy(strategy, invalid, judging.seed)
    rows: dict[str, Candidates] = {}
    skipped = check_rows(candidates, Unique(parse_candidates), strict, lambda row: rows.update({row.id: row}))
    votes_path = out.with_name(out.name + ".votes.jsonl")
    _refuse_to_overwrite(out, votes_path, rows, candidates)
    progress = Progress("comparisons", sum(plan.most_comparisons(len(row.responses)) for row in rows.values()))
    judge = open_judge(open_generator(models, progress), judging)
    settings = judge.settings | {"strategy": {"name": strategy, **dataclasses.asdict(plan)}}
    started = time.perf_counter()
    with VoteLog(votes_path, settings) as log:
        inputs: dict[str, str | Path] = {"candidates": candidates}
        write_provenance(out.with_name(out.name + ".run.json"), config=settings, seed=judging.seed, inputs=inputs)
        before = len(log)
        with progress:
            items = [Item(row.id, len(row.responses)) for row in rows.values()]
            results = run_tournaments(items, plan, comparer(judge, log, rows, progress.advance))
        drawn = len(log) - before
    _write(out, results)
    for line in summary(rows, results):
        print(line)
    print(f"{drawn} votes drawn now, {before} kept from before; {time.perf_counter() - started:.1f} s")
    if skipped:
        warn(f"{skipped} malformed row(s) of {candidates} were skipped")
        raise typer.Exit(1)


def choose_strategy(name: str, invalid: str, seed: int) -> "Elo | Knockout":
    from rrm_jax.ranking.strategies import Elo, Knockout

    if invalid not in ("random", "draw"):
        raise RrmError(f"--invalid {invalid!r} is not one of random, draw")
    if name == "elo":
        return Elo(seed, "draw" if invalid == "draw" else "random")
    if name != "knockout":
        raise RrmError(f"--strategy {name!r} is not one of elo, knockout")
    if invalid == "draw":
        raise RrmError("--invalid draw: a knockout's comparison needs a winner; use --invalid random or --strategy elo")
    return Knockout(seed)


def _refuse_to_overwrite(out: Path, votes_path: Path, ids: Iterable[str], candidates: Path) -> None:
    """OUT is replaced as a whole, which must lose nothing but an older result of the same job."""
    if not out.is_file() or not out.stat().st_size:
        return
    if not votes_path.is_file():
        raise RrmError(f"{out} exists, but not {votes_path}, so it is not this job's; choose another --out")
    lost = {row.get("id") for _, row in Reader(out, lambda row: row)} - set(ids)
    if lost:
        raise RrmError(f"{out} holds {len(lost)} row(s) whose ids are not in {candidates}; choose another --out")


def _write(out: Path, results: Sequence["Result"]) -> None:
    unfinished = out.with_name(out.name + ".part")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
            for result in results:
                file.write(json.dumps(dataclasses.asdict(result), ensure_ascii=False, separators=(",", ":")) + "\n")
        os.replace(unfinished, out)
    except OSError as error:
        raise RrmError(
            f"cannot write {out}: {error.strerror or error}; every vote is kept, run again to go on"
        ) from None


def summary(rows: dict[str, Candidates], results: Sequence["Result"]) -> list[str]:
    """The report, one fact a line; accuracies over the queries that say which of their responses are correct."""

    def total(field: str) -> int:
        return sum(getattr(result, field) for result in results)

    lines = [
        f"queries ranked: {len(results)} ({sum(len(result.ranking) for result in results)} candidates)",
        f"comparisons: {total('comparisons')} (without a winner: {total('invalid')})",
        f"votes: {total('votes')} (invalid: {total('invalid_votes')}, cut off at the token limit: {total('cut_off')}, "
        f"with inputs truncated: {total('truncated_inputs')}, forced by the thinking budget: {total('forced')}); "
        f"{total('tokens')} tokens",
    ]
    labelled = [(correct, result.best) for result in results if (correct := rows[result.id].correct) is not None]
    if labelled:
        count = len(labelled)
        best = sum(correct[pick] for correct, pick in labelled)
        mean = sum(sum(correct) / len(correct) for correct, _ in labelled)
        oracle = sum(any(correct) for correct, _ in labelled)
        lines.append(
            f"accuracy on {count} labelled queries: best {best / count:.4f} = {best} / {count}, "
            f"mean candidate {mean / count:.4f}, oracle {oracle / count:.4f} = {oracle} / {count}"
        )
    return lines
