"""`rrm compare`: several evaluations in one table."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    evaluations: Annotated[
        list[str], typer.Argument(metavar="[NAME=]OUT…", help="What rrm eval --out wrote, and what to call it.")
    ],
    format_: Annotated[
        Literal["terminal", "markdown", "latex", "csv"],
        typer.Option("--format", help="latex needs the package booktabs; csv has a row a score, unrounded."),
    ] = "terminal",
    intervals: Annotated[bool, typer.Option("--intervals", help="95 % intervals beside the scores.")] = False,
    depth: Annotated[int, typer.Option(min=1, help="Levels of scores: 1, the overall ones; 2, their parts; …")] = 1,
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Numbers that others published, below ours, marked.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="Write the table here instead of printing it.", show_default=False)
    ] = None,
) -> None:
    """Put evaluations by rrm eval side by side: a line a model, a column a score.

    The same NAME for several benchmarks makes one line of them. In Markdown and LaTeX the best of ours in each column
    is bold; whether a difference is more than chance says rrm eval --against.

    \b
    Example:
      rrm compare RRM=runs/rrm.pandalm RRM=runs/rrm.llmbar Direct=runs/direct.pandalm --intervals
      rrm compare runs/a runs/b --format latex --depth 2 --out table.tex
    """
    from rrm_jax.data.whole_files import write_whole
    from rrm_jax.evaluation.comparison import joined, read_line, render

    read = [read_line(spec, depth) for spec in evaluations]
    ours = joined([line for lines, _ in read for line in lines])
    others = joined([line for _, lines in read for line in lines]) if published else []
    text = render(ours, others, format_, intervals)
    if out is None:
        print(text, end="")
    else:
        write_whole(out, text)
