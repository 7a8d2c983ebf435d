"""`rrm judge`: verdicts for a file of pairs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rrm_jax.cli.judge_options import JudgeOptions
from rrm_jax.cli.options import ModelOptions, Strict, Verdicts, with_options


@with_options
def command(
    models: ModelOptions,
    pairs: Annotated[
        Path,
        typer.Option(
            help="JSONL: id, query, response_1, response_2, and optionally label 1 or 2; or a prepared data set."
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSONL of judgments. OUT.run.json and OUT.votes.jsonl stand beside it.")],
    judging: JudgeOptions,
    order: Annotated[
        Literal["random", "given", "both"],
        typer.Option(help="Which response is shown first; random: drawn for each vote, both: two samples a vote."),
    ] = "random",
    keep_thinking: Annotated[
        bool, typer.Option("--keep-thinking", help="Show what responses hold up to their last </think>, too.")
    ] = False,
    verdicts: Verdicts = None,
    strict: Strict = False,
) -> None:
    """Judge which of two responses is better.

    A judge thinks in free text and ends with a boxed verdict; a vote without one is invalid, never guessed.

    Each row of OUT is {id, winner, probability, votes: [{order, verdict, text, tokens, finish_reason, truncated_input,
    forced, probability}], content}, with label and correct where the pair has a label. winner and verdict are 1, 2, or
    null: no majority, or no valid verdict; an order of "21" showed response_2 first; forced: the thinking budget was
    used up. With --constrain-verdict, probability is the model's that response_1 is the better one, and a row's is the
    mean of its votes'; else null. Rows come as they are completed, in any order.

    Killed and started again with the same settings it goes on where it was: every vote is kept in OUT.votes.jsonl
    as it comes, or in a store that any jobs share (--verdicts, see rrm verdicts). A server that stays away ends the job
    with an error (exit code 2) and is never counted as a verdict. Malformed rows are reported and passed over (exit
    code 1).

    \b
    Example:
      rrm judge --model runs/judge --pairs pairs.jsonl --out judged.jsonl --votes 4 --order both
      rrm judge --model runs/judge --backend http://localhost:8000 --backend-model rrm-7b \\
        --pairs pairs.jsonl --out there.jsonl
    """
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.cli.judge_options import open_judge, votes_beside, warn_of_unknown
    from rrm_jax.cli.loading import Progress, check_rows, exit_if_skipped, warn
    from rrm_jax.data.jsonl import AppendLog
    from rrm_jax.data.prepared import RecordReader, content_file
    from rrm_jax.data.records import Pair, Unique, parse_pair
    from rrm_jax.errors import RrmError
    from rrm_jax.judging.judge import content_digest
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.judging.summary import summarise
    from rrm_jax.provenance import earlier_results, pinned

    digests: dict[str, str] = {}

    def note(pair: Pair) -> None:
        digests[pair.id] = content_digest(pair)

    skipped = check_rows(pairs, Unique(parse_pair), strict, note)
    progress = Progress("judging", len(digests))
    generator = open_generator(models, progress)
    judge = open_judge(generator, judging, order=order, keep_thinking=keep_thinking)
    shown = ((pair.query, pair.response_1, pair.response_2) for _, pair in RecordReader(pairs, Unique(parse_pair)))
    warn_of_unknown(generator.tokenizer, shown)
    run = out.with_name(out.name + ".run.json")
    earlier_results([out], run)
    store = votes_beside(out, verdicts, (out, run))
    inputs: dict[str, str | Path] = {"pairs": content_file(pairs)}
    with (
        pinned(run, config=judge.settings, seed=judging.seed, inputs=inputs),
        VoteLog(store, report=warn) as log,
        AppendLog(out) as rows,
    ):
        done = {row.get("id"): row.get("content") for row in rows.rows()}
        for pair_id in digests.keys() & done.keys():
            if done[pair_id] != digests[pair_id]:
                raise RrmError(f"{out}: the row with id {pair_id!r} was judged on other text; choose another --out")
        todo = (pair for _, pair in RecordReader(pairs, Unique(parse_pair)) if pair.id not in done)
        with progress:
            progress.begin(len(done.keys() & digests.keys()))
            for judgment in judge.judge(todo, log):
                rows.append(judgment.to_row())
                progress.advance()
        judged = (row for row in rows.rows() if row["id"] in digests)
        for line in summarise(judged, both_orders=order == "both").lines():
            print(line)
        if foreign := len(done.keys() - digests.keys()):
            warn(f"{out} also holds {foreign} row(s) whose ids are not in {pairs}; they are not counted above")
    exit_if_skipped(skipped, f"malformed row(s) of {pairs}")
