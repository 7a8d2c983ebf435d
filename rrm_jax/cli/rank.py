"""`rrm rank`: the best of many candidates, by pairwise tournaments."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rrm_jax.cli.backend import open_generator
from rrm_jax.cli.judge_options import JudgeOptions, open_judge, votes_beside, warn_of_unknown
from rrm_jax.cli.loading import Progress, check_rows, exit_if_skipped, warn
from rrm_jax.cli.options import ModelOptions, Strict, Verdicts, with_options
from rrm_jax.data.answers import canonical, final_answer, last_boxed, strip_thinking
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.prepared import content_file
from rrm_jax.data.records import Candidates, Unique, parse_candidates
from rrm_jax.data.whole_files import KEPT, write_jsonl
from rrm_jax.errors import RrmError
from rrm_jax.provenance import earlier_results

if TYPE_CHECKING:
    from rrm_jax.evaluation.ranking_report import Tournament
    from rrm_jax.ranking.protocol import Result
    from rrm_jax.ranking.tournament import Ranked


@dataclasses.dataclass(frozen=True)
class StrategyOptions:
    """How the best is sought."""

    strategy: Annotated[
        str,
        typer.Option(
            help="round-robin: every pair; random:opponents=4; knockout, knockout:seeding=2 (Swiss rounds first); "
            "swiss, swiss:rounds=6; adaptive: a knockout, then whoever may still be the best. n (n - 1) / 2, 4 n, n - 1"
            ", n / 2 a round and 4 n comparisons. rrm replay shows which one to use."
        ),
    ] = "round-robin"
    rating: Annotated[
        str | None,
        typer.Option(
            help="elo, elo-mean (over drawn orders of the games), points, win-rate (the mean over opponents), "
            "bradley-terry or survived. [default: the strategy's own]",
            show_default=False,
        ),
    ] = None
    budget: Annotated[int | None, typer.Option(min=1, help="Comparisons a query at most.")] = None
    token_budget: Annotated[int | None, typer.Option(min=1, help="Judge's tokens a query, give or take a round.")] = (
        None
    )
    stop: Annotated[
        str | None,
        typer.Option(
            help="certain: when no remaining game can change the winner (round robin by points or elo); or a "
            "probability: when the leader is the best with that much."
        ),
    ] = None
    invalid: Annotated[
        Literal["random", "draw"], typer.Option(help="A comparison without a winner is a random one's win, or a draw.")
    ] = "random"
    same_answer: Annotated[
        Literal["compare", "given", "boxed", "final"],
        typer.Option(
            help="given, boxed, final: do not compare candidates whose final answers, their `answers`, what they box "
            "last, or what they end with in any usual form (1/2 is 0.5), are the same."
        ),
    ] = "compare"


@with_options
def command(
    models: ModelOptions,
    candidates: Annotated[
        Path,
        typer.Option(
            help="JSONL: id, query, responses [..], and optionally correct [bool], answers [str]; or a "
            "prepared data set."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="JSONL of rankings. OUT.games.jsonl, .run.json, .votes.jsonl stand beside.")
    ],
    judging: JudgeOptions,
    ranking: StrategyOptions,
    picture: Annotated[
        Path | None,
        typer.Option(help="Brackets, rating intervals and win matrices: .html (all queries) or .png (one)."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Queries whose ranking is printed as a table.")] = 3,
    verdicts: Verdicts = None,
    strict: Strict = False,
) -> None:
    """Rank each query's candidate responses, and pick the best, by comparing them in pairs.

    Each row of OUT is {id, best, ranking, ratings, strengths, low, high, comparisons, votes, tokens, invalid, spared,
    ...}: best and ranking (best first) are positions in responses, from 0; strengths are Bradley-Terry's on Elo's scale
    with 95 % intervals; invalid counts comparisons without a winner, spared those of equal answers, which nobody
    judged. OUT.games.jsonl has all of both, for rrm replay. Every vote shows its pair in a random order. Where
    rows have `correct`, the accuracy of what was picked is printed beside the mean candidate's and the oracle's.

    Killed and started again with the same settings it goes on where it was: every vote is kept in OUT.votes.jsonl as
    it comes, or in a store that any strategies share (--verdicts), and OUT is written in one piece at the end; a server
    that stays away ends the job with an error (exit code 2) and is never counted as a verdict. Malformed rows are
    reported and passed over (exit code 1).

    \b
    Example:
      rrm rank --model runs/judge --candidates candidates.jsonl --out ranked.jsonl --strategy knockout --votes 3
      rrm rank --model runs/judge --candidates candidates.jsonl --out best.jsonl --strategy adaptive --budget 40
      rrm rank --model runs/judge --backend http://localhost:8000 --backend-model rrm-7b \\
        --candidates candidates.jsonl --out there.jsonl --picture there.html
    """
    from rrm_jax.evaluation.ranking_picture import picture_format
    from rrm_jax.evaluation.tournament import comparer
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.provenance import pinned
    from rrm_jax.ranking.entry import parse_entry
    from rrm_jax.ranking.protocol import Item
    from rrm_jax.ranking.tournament import check_items, run_tournaments

    entry = parse_entry(
        ranking.strategy, rating=ranking.rating, stop=ranking.stop, budget=ranking.budget, tokens=ranking.token_budget
    )
    if entry.votes != 1:
        raise RrmError(f"{ranking.strategy!r}: the votes of a comparison are --votes here")
    if picture:
        picture_format(picture)
    rows: dict[str, Candidates] = {}
    skipped = check_rows(candidates, Unique(parse_candidates), strict, lambda row: rows.update({row.id: row}))
    items = [Item(row.id, len(row.responses), answers_of(row, ranking.same_answer)) for row in rows.values()]
    check_items(items, entry.strategy, entry.stop)
    run_path = out.with_name(out.name + ".run.json")
    _refuse_to_overwrite(out, run_path, rows, candidates)
    progress = Progress("comparisons", sum(_most_comparisons(entry, item.candidates) for item in items))
    generator = open_generator(models, progress)
    judge = open_judge(generator, judging)
    warn_of_unknown(generator.tokenizer, ((row.query, *row.responses) for row in rows.values()))
    settings = judge.settings | {"ranking": dataclasses.asdict(ranking)}
    started = time.perf_counter()
    store = votes_beside(out, verdicts, (out, run_path))
    inputs: dict[str, str | Path] = {"candidates": content_file(candidates)}
    with pinned(run_path, config=settings, seed=judging.seed, inputs=inputs), VoteLog(store, report=warn) as log:
        with progress:
            compare = comparer(judge, log, rows, progress.advance)
            how = {"seed": judging.seed, "rating": entry.rating, "stop": entry.stop, "invalid": ranking.invalid}
            ranked = run_tournaments(items, entry.strategy, compare, **how)
        write_jsonl(out.with_name(out.name + ".games.jsonl"), _games(ranked), KEPT)
        write_jsonl(out, (dataclasses.asdict(one.result) for one in ranked), KEPT)
    _report(ranked, rows, ranking.strategy, show, picture)
    print(f"{log.written} votes drawn now, {log.found} found in the store; {time.perf_counter() - started:.1f} s")
    exit_if_skipped(skipped, f"malformed row(s) of {candidates}")


def _report(
    ranked: Sequence["Ranked"], rows: Mapping[str, Candidates], strategy: str, show: int, picture: Path | None
) -> None:
    from rrm_jax.evaluation.ranking_picture import write_picture
    from rrm_jax.evaluation.ranking_report import ranking_table, tournament_of

    reports = [tournament_of(one.result, rows[one.result.id].responses, one.rounds, strategy) for one in ranked]
    for report in reports[:show]:
        print("\n".join([f"query {report.id}", *ranking_table(report, most=16), ""]))
    lines = summary(rows, [one.result for one in ranked], reports)
    if picture:
        write_picture(picture, reports, f"Ranking by {strategy}", lines)
    print("\n".join(lines))


def answers_of(row: Candidates, rule: str) -> tuple[str | None, ...] | None:
    """What marks candidates that say the same, by --same-answer; None: nothing does. RrmError for a row that lacks what
    the rule reads."""
    if rule == "given" and row.answers is None:
        raise RrmError(f"--same-answer given: row {row.id!r} has no field 'answers'")
    if rule == "final":
        found = (final_answer(strip_thinking(response)) for response in row.responses)
        return tuple(None if answer is None else canonical(answer) for answer in found)
    if rule == "boxed":
        return tuple(last_boxed(response) for response in row.responses)
    return row.answers if rule == "given" else None


def _most_comparisons(entry: Any, candidates: int) -> int:
    most = entry.strategy.most_comparisons(candidates)
    return most if entry.stop.budget is None else min(most, entry.stop.budget)


def _refuse_to_overwrite(out: Path, run_path: Path, ids: Iterable[str], candidates: Path) -> None:
    """OUT is replaced as a whole, which must lose nothing but an older result of the same job."""
    if not earlier_results([out], run_path):
        return
    lost = {row.get("id") for _, row in Reader(out, lambda row: row)} - set(ids)
    if lost:
        raise RrmError(f"{out} holds {len(lost)} row(s) whose ids are not in {candidates}; choose another --out")


def _games(ranked: Sequence["Ranked"]) -> Iterable[dict[str, Any]]:
    for one in ranked:
        met: dict[frozenset[int], int] = {}
        for number, matches in enumerate(one.rounds, start=1):
            for match in matches:
                pair = frozenset((match.i, match.j))
                met[pair] = met.get(pair, -1) + 1
                place = {"id": one.result.id, "round": number, "i": match.i, "j": match.j, "meeting": met[pair]}
                if match.outcome is None:
                    yield place | {"winner": None, "spared": True}
                else:
                    yield place | dataclasses.asdict(match.outcome)


def summary(rows: Mapping[str, Candidates], results: Sequence["Result"], reports: Sequence["Tournament"]) -> list[str]:
    """The report, one fact a line; accuracies over the queries that say which of their responses are correct."""
    from rrm_jax.evaluation.ranking_report import summary_lines

    count = len(results)
    lines = [f"queries ranked: {count} ({sum(len(result.ranking) for result in results)} candidates)"]
    lines += summary_lines(reports)
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
