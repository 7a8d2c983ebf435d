"""`rrm replay`: which strategy to use, found out without a model."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.loading import Progress
from rrm_jax.cli.options import with_options
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.ranking.entry import Entry
    from rrm_jax.ranking.replay import Curve
    from rrm_jax.ranking.simulator import Simulator

_STRATEGIES = "round-robin,knockout,random,swiss,adaptive"
_WITH_VOTES = "round-robin,knockout,knockout:votes=3,random,swiss,adaptive"


@dataclasses.dataclass(frozen=True)
class _Simulated:
    """Whom a simulated judge compares, and how it errs."""

    candidates: Annotated[str, typer.Option(help="Simulator: numbers of candidates, comma-separated.")] = "8,32"
    spread: Annotated[
        str, typer.Option(help="Simulator: judges' noise. 4 is right about 0.91 of random pairs, 2: 0.83, 1: 0.73.")
    ] = "4,2,1"
    tournaments: Annotated[int, typer.Option(help="How many, of each kind.", min=1)] = 2000
    position_bias: Annotated[float, typer.Option(help="Simulator: log-odds in favour of who is shown first.")] = 0.0
    pair_error: Annotated[
        float, typer.Option(help="Simulator: standard deviation of an error that all votes on a pair share.", min=0)
    ] = 0.0
    intransitivity: Annotated[float, typer.Option(help="Simulator: weight of a term that makes cycles.")] = 0.0


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """What is known of real candidates."""

    labelled: Annotated[
        Path | None,
        typer.Option(help="JSONL of candidates with `correct`: a judge is simulated from it, instead of strengths."),
    ] = None
    accuracy: Annotated[str, typer.Option(help="With --labelled: how often it names the correct one.")] = "0.9,0.75"
    log: Annotated[Path | None, typer.Option(help="The games that `rrm rank` recorded (OUT.games.jsonl).")] = None


@with_options
def command(
    *,
    out: Annotated[Path, typer.Option(help="A folder: replay.json, replay.md, replay.png and run.json are written.")],
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated NAME[:key=value...]: round-robin, random (opponents), knockout (seeding), swiss "
            "(rounds), adaptive (budget, parallel, correlation); each with rating, stop and (not with --log) votes.",
            show_default=_WITH_VOTES,
        ),
    ] = None,
    simulated: _Simulated,
    recorded: _Recorded,
    curve: Annotated[bool, typer.Option(help="Look at the pick several times during a tournament.")] = True,
    seed: Annotated[int, typer.Option(help="Of strengths, votes, brackets and orders.")] = 0,
) -> None:
    """Accuracy against the number of comparisons, for any strategies, from a simulated judge or a recorded log.

    The simulated judge is a Bradley-Terry one with the faults asked for; right is the pick of the truly strongest
    candidate. With --labelled right is a correct pick, of rows that have both kinds. With --log right is a correct
    pick where --labelled says so, else the pick of all the log's games together (by points); a strategy can only ask
    for what the log holds, so record it with a round robin.

    \b
    Example:
      rrm replay --out runs/replay --candidates 8 --tournaments 500
      rrm replay --out runs/stops --strategies round-robin:rating=points,round-robin:rating=points:stop=certain
      rrm replay --out runs/again --log ranked.games.jsonl --labelled candidates.jsonl --strategies knockout,adaptive
    """
    from rrm_jax.evaluation.replay_report import markdown, write_figure
    from rrm_jax.provenance import write_provenance
    from rrm_jax.ranking.entry import parse_entry
    from rrm_jax.ranking.simulator import Simulator

    given = strategies or (_STRATEGIES if recorded.log else _WITH_VOTES)
    entries = [parse_entry(text.strip()) for text in given.split(",")]
    if recorded.log and (several := next((entry for entry in entries if entry.votes != 1), None)):
        raise RrmError(f"{several.text!r}: with --log a comparison has the votes that were recorded")
    faults = Simulator(1.0, simulated.position_bias, simulated.pair_error, simulated.intransitivity)
    out.mkdir(parents=True, exist_ok=True)
    inputs: dict[str, str | Path] = {
        name: path for name, path in (("labelled", recorded.labelled), ("log", recorded.log)) if path is not None
    }
    config = {
        "strategies": [entry.text for entry in entries], "candidates": simulated.candidates,
        "spread": simulated.spread, "accuracy": recorded.accuracy, "tournaments": simulated.tournaments,
        "faults": dataclasses.asdict(faults), "curve": curve,
    }  # fmt: skip
    write_provenance(out / "run.json", config=config, seed=seed, inputs=inputs)
    sources, results = _sources(simulated, recorded, faults, seed), {}
    with Progress("tables", len(sources) * len(entries)) as progress:
        for name, parts in sources.items():
            results[name] = _curves(entries, parts, curve, progress)
    text = markdown(results)
    (out / "replay.md").write_text(text, encoding="utf-8")
    rows = {name: [dataclasses.asdict(curve) for curve in curves] for name, curves in results.items()}
    (out / "replay.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_figure(out / "replay.png", results)
    print(text)


def _sources(simulated: _Simulated, recorded: _Recorded, faults: "Simulator", seed: int) -> dict[str, Any]:
    """The tournaments to play, by what the tables call them."""
    from rrm_jax.evaluation.replay_sources import labelled_parts, log_parts, simulated_parts

    log, labelled, tournaments = recorded.log, recorded.labelled, simulated.tournaments
    if log is not None:
        return {f"log {log.name}": log_parts(log, labelled, seed)}
    if labelled is not None:
        return {
            f"{labelled.name}, accuracy {right:g}": labelled_parts(labelled, faults, right, tournaments, seed)
            for right in _numbers(recorded.accuracy, "accuracy")
        }
    return {
        f"n = {n}, spread {width:g}": simulated_parts(n, dataclasses.replace(faults, spread=width), tournaments, seed)
        for n in _whole_numbers(simulated.candidates, "candidates")
        for width in _numbers(simulated.spread, "spread")
    }


def _curves(entries: Sequence["Entry"], parts, curve: bool, progress: Progress) -> list["Curve"]:
    from rrm_jax.ranking.replay import replay

    curves = []
    for entry in entries:
        curves += replay([entry], parts, curve=curve)
        progress.advance()
    return curves


def _whole_numbers(text: str, name: str) -> list[int]:
    values = _numbers(text, name)
    if not all(value == int(value) for value in values):
        raise RrmError(f"--{name} {text!r} must be whole numbers")
    return [int(value) for value in values]


def _numbers(text: str, name: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise RrmError(f"--{name} {text!r} must be numbers, separated by commas") from None
    if not all(0 < value < math.inf for value in values):
        raise RrmError(f"--{name} {text!r} must be above 0")
    return values
