"""`rrm study`: the paper's studies, one command each."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.options import Overrides

if TYPE_CHECKING:
    from rrm_jax.cli.backend import Writer
    from rrm_jax.cli.loading import Progress
    from rrm_jax.judging.judge import Judge, OrderPolicy
    from rrm_jax.studies.config import JudgeConfig


def command(
    name: Annotated[str, typer.Argument(help="Which study; they are listed above.")],
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or a scale that comes with the package: tiny (quickstart's), rrm-7b, rrm-32b."
        ),
    ],
    overrides: Overrides = None,
) -> None:
    """Run one of the paper's studies: its data, a table and a figure.

    \b
    benchmarks: published benchmarks, as rrm eval scores them, with the published numbers
    reasoning: a judge that thinks against one that does not, both orders, paired test
    base-models: judges trained from different models, the same way
    transfer: pairs of another domain than the judge was trained on
    test-time-compute: accuracy against votes and comparisons; Elo, knockout and sparse tournaments
    thinking-budget: accuracy when thinking is cut off, and the verdict forced
    patterns: words of transition, reflection, comparison and breakdown in traces, and their diversity
    intransitivity: cycles among the games of tournaments, and what they cost Elo and knockout
    dynamics: curves of training runs side by side
    posttrain-rl: a policy trained by GRPO on a judge's tournaments, on a verifier, and on a coin
    posttrain-dpo: a policy trained by DPO on its own responses, labelled by a judge, by known answers, and by a coin
    cost: accuracy against tokens, for every strategy, number of votes and thinking budget
    calibration: how sure a judge is against how often it is right

    Writes data.json (every number of the figure, with n and 95 % bootstrap intervals), table.md, figure.png and
    run.json to the directory `output`. Published numbers stand beside ours where there are any, marked as such.

    Killed and started again with the same settings it goes on where it was: every vote is kept in OUTPUT/votes.jsonl
    as it comes, or in a store that any studies share (verdicts=STORE, see rrm verdicts). A server that stays away ends
    the study with an error (exit code 2) and is never counted as a verdict. Malformed rows, and rows of a
    benchmark that it refuses, are reported and passed over (exit code 1).

    \b
    Example:
      rrm quickstart && rrm study reasoning tiny
      rrm study reasoning rrm-7b judges.RRM-7B.model=runs/rrm_7b pairs=held_out.jsonl
    """
    from rrm_jax.cli.loading import Progress, exit_if_skipped, warn
    from rrm_jax.studies.run import run_study, study_config

    resolved = study_config(name, config, overrides or [])
    progress = Progress(f"study {name}")
    with progress:
        text, _, skipped = run_study(name, resolved, Models(progress).open_judge, warn, progress.advance)
    print(text)
    print(f"{resolved.output}: data.json, table.md, figure.png, run.json")
    exit_if_skipped(skipped, "row(s) that are malformed, or that a judge could not judge,")


class Models:
    """Opens judges; of their models only the last one opened is held."""

    def __init__(self, progress: "Progress"):
        self._progress = progress
        self._held: tuple[Any, Writer] | None = None

    def open_judge(
        self, judge: "JudgeConfig", *, seed: int, votes: int, order: "OrderPolicy", thinking_budget: int | None
    ) -> "Judge":
        """As `studies.common.OpenJudge` has it."""
        from rrm_jax.cli.backend import open_generator
        from rrm_jax.cli.judge_options import JudgeOptions, open_judge
        from rrm_jax.cli.options import ModelOptions

        where = [field.name for field in dataclasses.fields(ModelOptions) if field.name != "model"]
        options = ModelOptions(Path(judge.model), **{field: getattr(judge, field) for field in where})
        if self._held is None or self._held[0] != options:
            self._held = None  # its memory is needed before the next is loaded
            self._held = options, open_generator(options, self._progress)
        asked = JudgeOptions(
            votes=votes,
            seed=seed,
            temperature=judge.temperature,
            top_p=judge.top_p,
            max_new_tokens=judge.max_new_tokens if thinking_budget is None else None,
            max_prompt_tokens=judge.max_prompt_tokens,
            thinking_budget=thinking_budget,
            constrain_verdict=judge.constrain_verdict,
            template=judge.template,
            direct=None if judge.thinking is None else not judge.thinking,
        )
        return open_judge(self._held[1], asked, order=order)
