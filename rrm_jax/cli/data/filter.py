"""`rrm data filter`: without the pairs that a judge finds too easy, or too hard, to learn from."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from rrm_jax.cli.judge_options import JudgeOptions
from rrm_jax.cli.options import ModelOptions, Strict, Verdicts, with_options


@dataclasses.dataclass(frozen=True)
class _FilterJudging(JudgeOptions):
    votes: Annotated[int, typer.Option(min=1, help="Samples a pair, each in a random order.")] = 4


@dataclasses.dataclass(frozen=True)
class _Limits:
    """Which pairs are kept."""

    keep_at_most: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Keep pairs with so many right votes at most. [default: one less than --votes]",
            show_default=False,
        ),
    ] = None
    keep_at_least: Annotated[
        int, typer.Option(min=0, help="Keep pairs with so many right votes at least; 1 drops those never judged right.")
    ] = 0


@with_options
def command(
    models: ModelOptions,
    pairs: Annotated[Path, typer.Option(help="JSONL: id, query, response_1, response_2, label 1 or 2.")],
    out: Annotated[
        Path, typer.Option(help="JSONL of what is kept. OUT.dropped.jsonl, .run.json and .votes.jsonl stand beside.")
    ],
    judging: _FilterJudging,
    limits: _Limits,
    verdicts: Verdicts = None,
    strict: Strict = False,
) -> None:
    """Drop the pairs that a judge finds too easy, or too hard, to learn from.

    Each pair is judged --votes times. By default one whose every vote is right is dropped: all its rollouts would have
    the same reward, and teach nothing. An invalid vote is not right. Rows go to OUT, or to OUT.dropped.jsonl, as they
    stand in PAIRS, byte for byte and in their order; joining both files undoes it. How many pairs have how many right
    votes is printed, and how many are kept, of each source too where rows have `source`.

    Killed and started again with the same settings it goes on where it was: every vote is kept in OUT.votes.jsonl as
    it comes, or in a store that any jobs share (--verdicts; another limit, with another --out, asks nothing again), and
    OUT is written in one piece at the end. A server that stays away ends the job with an error (exit code 2) and is
    never counted as a verdict. Malformed rows are reported and passed over (exit code 1); pairs without a label are an
    error.

    \b
    Example:
      rrm data filter --model checkpoints/r1-1.5b --pairs pairs.jsonl --out hard.jsonl
      rrm data filter --model checkpoints/r1-1.5b --pairs pairs.jsonl --out some.jsonl --keep-at-least 1 \\
        --verdicts hard.jsonl.votes.jsonl
    """
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.cli.judge_options import open_judge, votes_beside
    from rrm_jax.cli.loading import Progress, exit_if_skipped, warn
    from rrm_jax.data.jsonl import Reader
    from rrm_jax.data.records import Unique, parse_labelled_pair
    from rrm_jax.data.split_rows import lines_of, refuse_to_overwrite, split_pairs
    from rrm_jax.errors import RrmError
    from rrm_jax.evaluation.difficulty import Difficulty
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.judging.summary import Summary
    from rrm_jax.provenance import fingerprint, pinned, refuse_inputs_as_outputs

    most = judging.votes - 1 if limits.keep_at_most is None else limits.keep_at_most
    difficulty = Difficulty(judging.votes, limits.keep_at_least, most)
    dropped, run = (out.with_name(out.name + end) for end in (".dropped.jsonl", ".run.json"))
    store = votes_beside(out, verdicts, (out, dropped, run))
    refuse_inputs_as_outputs((out, dropped, run, store), [pairs])
    count, skipped = _check_labelled(pairs, strict)
    refuse_to_overwrite(dict.fromkeys((out, dropped), bytes), run, pairs, lambda: lines_of(pairs))
    progress = Progress("judging", count)
    judge = open_judge(open_generator(models, progress), judging)
    settings = judge.settings | {"keep_at_least": limits.keep_at_least, "keep_at_most": most}
    started, before, summary = time.perf_counter(), fingerprint(pairs), Summary()
    with (
        pinned(run, config=settings, seed=judging.seed, inputs={"pairs": pairs}),
        VoteLog(store, report=warn) as log,
    ):
        with progress:
            for judgment in judge.judge((pair for _, pair in Reader(pairs, Unique(parse_labelled_pair))), log):
                difficulty.add(judgment)
                summary.add(judgment.to_row(), both_orders=False)
                progress.advance()
        if fingerprint(pairs) != before:
            raise RrmError(f"{pairs} was changed while it was judged; every vote is kept, run again to go on")
        split_pairs(pairs, difficulty.keeps, out, dropped)
    for line in (*summary.lines(), *difficulty.lines()):
        print(line)
    print(f"{log.written} votes drawn now, {log.found} found in the store; {time.perf_counter() - started:.1f} s")
    exit_if_skipped(skipped, f"malformed row(s) of {pairs}")


def _check_labelled(pairs: Path, strict: bool) -> tuple[int, int]:
    """Reads the whole file once: how many pairs it has, and how many rows are malformed."""
    from rrm_jax.cli.loading import check_rows
    from rrm_jax.data.records import Unique, parse_pair
    from rrm_jax.errors import RrmError

    ids: list[str] = []
    unlabelled: list[str] = []
    skipped = check_rows(
        pairs, Unique(parse_pair), strict, lambda pair: (ids if pair.label else unlabelled).append(pair.id)
    )
    if unlabelled:
        raise RrmError(
            f"{pairs}: {len(unlabelled)} of {len(ids) + len(unlabelled)} pairs have no label, id {unlabelled[0]!r} the "
            "first; which votes are right is known only where label is 1 or 2"
        )
    return len(ids), skipped
