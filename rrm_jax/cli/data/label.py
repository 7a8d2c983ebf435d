"""`rrm data label`: pairs without a label get the one that a judge's votes in both orders name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rrm_jax.cli.judge_options import JudgeOptions
from rrm_jax.cli.options import ModelOptions, Strict, Verdicts, with_options

if TYPE_CHECKING:
    from rrm_jax.evaluation.labelling import Task
    from rrm_jax.evaluation.labelling_report import Labels


@dataclasses.dataclass(frozen=True)
class _LabelJudging(JudgeOptions):
    votes: Annotated[int, typer.Option(min=1, help="Samples in each order; a pair gets twice as many.")] = 1


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What is labelled."""

    pairs: Annotated[
        Path | None,
        typer.Option(help="JSONL: id, query, response_1, response_2; or a prepared data set.", show_default=False),
    ] = None
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --pairs, JSONL: id, query, responses, of which two are taken.", show_default=False
        ),
    ] = None
    pick: Annotated[
        Literal["first", "random"],
        typer.Option(help="Of candidates: the first two, or two drawn by the seed and the row's id."),
    ] = "first"
    require_answer: Annotated[
        bool,
        typer.Option(
            "--require-answer",
            help="Of candidates: pass over responses without </think>, which were cut off in their thinking.",
        ),
    ] = False
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Of candidates: write responses with their thinking, which the judge still does not see: for training "
            "a policy that thinks (method: dpo). With --require-answer both have </think>.",
        ),
    ] = False
    relabel: Annotated[
        bool,
        typer.Option("--relabel", help="Label rows that have a label, too, and say how often the new one is the same."),
    ] = False

    @property
    def settings(self) -> dict[str, Any]:
        """What the labels depend on."""
        if self.candidates is None:
            return {"relabel": self.relabel}
        taken = {"relabel": self.relabel, "pick": self.pick, "require_answer": self.require_answer}
        return taken | ({"whole": True} if self.whole else {})


@dataclasses.dataclass(frozen=True)
class _Labelling:
    """Which label, if any."""

    disagreement: Annotated[
        Literal["drop", "majority", "soft"],
        typer.Option(
            help="Where the orders name different responses: drop the pair; the majority of all votes; or soft: the "
            "response whose mean probability is above 1/2 (with --constrain-verdict)."
        ),
    ] = "drop"
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Drop pairs of which a smaller share of all votes (soft: probability) names the label.",
        ),
    ] = 0.0


@with_options
def command(
    models: ModelOptions,
    rows: _Rows,
    out: Annotated[
        Path, typer.Option(help="JSONL of labelled pairs. OUT.dropped.jsonl, .run.json and .votes.jsonl stand beside.")
    ],
    judging: _LabelJudging,
    labelling: _Labelling,
    verdicts: Verdicts = None,
    strict: Strict = False,
) -> None:
    """Label pairs with a judge: a server's model, or one of our own.

    Each pair is judged --votes times in both orders. By default the majority of each order must name the same response,
    which becomes the label; other pairs are dropped. Rows go to OUT with `label`, or to OUT.dropped.jsonl, in their
    order and with all their own fields; `labelling` says by how many votes, or for what reason not. Pairs with the same
    response twice, or an empty text, are dropped unasked. Printed are counts by reason and by source, how often both
    orders name the same response, how often the one shown first wins, and the tokens spent.

    With --candidates two responses of each row are taken, their thinking removed (--whole: removed only for the judge);
    `picked` says which.

    Killed and started again with the same settings it goes on where it was: every vote is kept in OUT.votes.jsonl as
    it comes, or in a store that any jobs share (--verdicts; another --disagreement, with another --out, asks nothing
    again), and OUT is written in one piece at the end. A server that stays away ends the job with an error (exit code
    2) and is never counted as a verdict. Malformed rows are reported and passed over (exit code 1); pairs with a label
    are an error without --relabel.

    \b
    Example:
      rrm data label --model checkpoints/r1-1.5b --pairs pairs.jsonl --out labelled.jsonl
      rrm data label --model checkpoints/r1-1.5b --candidates sampled.jsonl --require-answer \\
        --out sampled_pairs.jsonl --votes 3 --min-agreement 0.8
    """
    import time

    from rrm_jax.cli.backend import open_generator
    from rrm_jax.cli.judge_options import open_judge, votes_beside
    from rrm_jax.cli.loading import Progress, exit_if_skipped, warn
    from rrm_jax.data.prepared import RecordReader, content_file
    from rrm_jax.data.records import Unique
    from rrm_jax.errors import RrmError
    from rrm_jax.evaluation.labelling import Rule, refuse_to_overwrite, write_labelled
    from rrm_jax.evaluation.labelling_report import Labels
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.judging.summary import Summary
    from rrm_jax.provenance import fingerprint, pinned, refuse_inputs_as_outputs

    source, parse = _source(rows, judging.seed)
    if labelling.disagreement == "soft" and not judging.constrain_verdict:
        raise RrmError("--disagreement soft needs votes with probabilities; add --constrain-verdict")
    dropped, run = (out.with_name(out.name + end) for end in (".dropped.jsonl", ".run.json"))
    store = votes_beside(out, verdicts, (out, dropped, run))
    refuse_inputs_as_outputs((out, dropped, run, store), [source])
    labels, summary = Labels(Rule(labelling.disagreement, labelling.min_agreement)), Summary()
    count, skipped = _check(source, parse, strict, rows.relabel, labels)
    refuse_to_overwrite((out, dropped), run, source, parse)
    progress = Progress("judging", count)
    judge = open_judge(open_generator(models, progress), judging, order="both")
    settings = judge.settings | dataclasses.asdict(labelling) | rows.settings
    content = content_file(source)
    started, before = time.perf_counter(), fingerprint(content)
    with (
        pinned(run, config=settings, seed=judging.seed, inputs={"pairs" if rows.pairs else "candidates": content}),
        VoteLog(store, report=warn) as log,
    ):
        tasks = (task for _, task in RecordReader(source, Unique(parse)) if not task.reason)
        with progress:
            for judgment in judge.judge((task.pair for task in tasks if task.pair), log):
                labels.add(judgment)
                summary.add(judgment.to_row(), both_orders=True)
                progress.advance()
        if fingerprint(content) != before:
            raise RrmError(f"{source} was changed while it was judged; every vote is kept, run again to go on")
        write_labelled(source, parse, labels.row, out, dropped)
    for line in (*(summary.lines() if count else ()), *labels.lines(skipped)):
        print(line)
    print(f"{log.written} votes drawn now, {log.found} found in the store; {time.perf_counter() - started:.1f} s")
    exit_if_skipped(skipped, f"malformed row(s) of {source}")


def _source(rows: _Rows, seed: int) -> "tuple[Path, Callable[[dict[str, Any]], Task]]":
    """The file to label, and how its rows are read."""
    from rrm_jax.errors import RrmError
    from rrm_jax.evaluation.labelling import task_of_candidates, task_of_pair

    if rows.candidates is not None and rows.pairs is None:
        return rows.candidates, task_of_candidates(rows.pick, seed, rows.require_answer, rows.whole)
    if rows.pairs is None or rows.candidates is not None:
        raise RrmError("name the rows to label: one of --pairs FILE and --candidates FILE")
    if rows.pick != "first" or rows.require_answer or rows.whole:
        raise RrmError("--pick, --require-answer and --whole are for --candidates; leave them out with --pairs")
    return rows.pairs, task_of_pair


def _check(
    source: Path, parse: "Callable[[dict[str, Any]], Task]", strict: bool, relabel: bool, labels: "Labels"
) -> tuple[int, int]:
    """Reads the whole file once: how many rows are to be judged, and how many are malformed. What needs no judge is
    put among the labels."""
    from rrm_jax.cli.loading import check_rows
    from rrm_jax.data.records import Unique
    from rrm_jax.errors import RrmError

    labelled: list[str] = []
    count = total = 0

    def note(task: "Task") -> None:
        nonlocal count, total
        total += 1
        if task.pair is not None and task.pair.label is not None:
            labelled.append(task.id)
        if task.reason:
            labels.leave_out(task)
        else:
            count += 1

    skipped = check_rows(source, Unique(parse), strict, note)
    if labelled and not relabel:
        raise RrmError(
            f"{source}: {len(labelled)} of {total} pairs have a label already, id {labelled[0]!r} the first; --relabel "
            "judges them too, and says how often the new label is the same"
        )
    return count, skipped
