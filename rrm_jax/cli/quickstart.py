"""`rrm quickstart`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(help="Directory for everything that is made.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Changes the data, the model's weights and every draw.", min=0)] = 0,
) -> None:
    """Train a tiny judge from nothing on this machine, in a few minutes.

    Makes verifiable preference pairs, gives a tiny Qwen2 the output format and a weak ability by a short supervised
    warm start, trains it by GRPO on right and wrong alone, compares it with a DirectJudge trained the same way, and
    lets it choose the best of 8. Interrupted, the same command goes on where it was.

    \b
    Example:
      rrm quickstart --out runs/quickstart
    """
    import sys

    from rrm_jax.quickstart.report import draw_figure, print_table
    from rrm_jax.quickstart.run import quickstart

    results = quickstart(out, seed, lambda message: print(message, file=sys.stderr, flush=True))
    print_table(results)
    draw_figure(results, out / "quickstart.png")
    print(f"figure: {out / 'quickstart.png'}   numbers: {out / 'results.json'}")
    print(f"took {results['seconds']['total']:.0f} s. Try the judge that it made:")
    common = f"--model {out}/grpo --temperature 1"
    print(f"  rrm judge {common} --pairs {out}/data/eval.jsonl --out {out}/judged.jsonl --order both")
    print(f"  rrm rank {common} --candidates {out}/data/candidates.jsonl --out {out}/ranked.jsonl --strategy knockout")
