"""`rrm verdicts`: what a store of verdicts holds; verdicts out of one, and into one."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rrm_jax.cli.loading import Progress, warn

if TYPE_CHECKING:
    from rrm_jax.judging.store import Merged, VoteLog, VoteRecord

app = typer.Typer(
    help="Look at stores of verdicts, export and import them. What rrm judge and rrm rank keep is a store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Store = Annotated[Path, typer.Argument(help="A store: what --verdicts names, or an OUT.votes.jsonl.")]


@app.command("show")
def show(store: _Store) -> None:
    """List the settings that a store has votes of, and count the votes.

    Settings are what a vote depends on beside the texts: model, template, decoding, seed. What all of them share is
    printed once. Votes that contradict an earlier one are reported and not counted (exit code 1).

    \b
    Example:
      rrm verdicts show verdicts.jsonl
    """
    log, problems = _open(store)
    counts = {name: _Counts() for name in log.settings}
    for vote in log.votes():
        counts[vote.settings].add(vote.record)
    print(f"{store}: {len(log)} votes, {len(counts)} settings")
    texts = {name: {key: json.dumps(value) for key, value in held.items()} for name, held in log.settings.items()}
    shared = dict(set.intersection(*(set(held.items()) for held in texts.values()))) if len(texts) > 1 else {}
    if shared:
        print("all settings have")
        _print_settings(shared)
    for name, held in texts.items():
        print(f"{name[:12]}: {counts[name]}")
        _print_settings({key: value for key, value in held.items() if key not in shared})
    _end(problems)


@app.command("export")
def export(
    store: _Store,
    out: Annotated[Path, typer.Option(help="JSONL file to write; it is a store itself.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(metavar="DIGEST", help="Only votes of these settings (the beginning of a digest; repeatable)."),
    ] = None,
) -> None:
    """Write a store's votes to a file, each once.

    The file's rows are {digest, settings}, then {key, settings, texts, vote, query, shown, verdict, text, tokens,
    finish_reason, truncated_input, forced, probability}: settings by their digest; texts, query, and both responses as
    shown (first the one shown as Assistant 1) by the SHA-256 of their JSON; vote, the vote's number. Rows of earlier
    versions lack texts, vote, query and shown. Votes that contradict an earlier one are reported and left out (exit
    code 1).

    \b
    Example:
      rrm verdicts export verdicts.jsonl --out votes_of_one_judge.jsonl --settings 3fa94c
    """
    from rrm_jax.errors import RrmError
    from rrm_jax.judging.store import VoteLog

    if out.exists():
        raise RrmError(f"{out} exists already; give another name or remove it")
    log, problems = _open(store)
    chosen = _choose(log, settings)
    partial = out.with_name(f".{out.name}.partial")
    partial.unlink(missing_ok=True)
    with VoteLog(partial) as into:
        count = _merge(log, into, chosen, problems).new
    partial.replace(out)
    print(f"{count} votes of {len(chosen)} settings written to {out}")
    _end(problems)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What rrm verdicts export wrote, or any store.")],
    store: Annotated[Path, typer.Option(help="The store to add to; made if it does not exist.")],
) -> None:
    """Add a file's votes to a store.

    FILE is read as a whole, and checked, before anything is added. A vote that the store has already stays as it is;
    where FILE's says something else, that is reported (exit code 1).

    \b
    Example:
      rrm verdicts import votes_of_one_judge.jsonl --store verdicts.jsonl
    """
    from rrm_jax.judging.store import VoteLog

    source, problems = _open(file)
    with VoteLog(store, report=problems) as into:
        done = _merge(source, into, source.settings, problems)
    print(
        f"{done.new} votes added to {store}, {done.known} it had already ({done.contradictory} of them contradict it)"
    )
    _end(problems)


@dataclasses.dataclass
class _Counts:
    votes: int = 0
    ones: int = 0
    twos: int = 0
    invalid: int = 0
    cut_off: int = 0
    truncated_inputs: int = 0
    forced: int = 0
    tokens: int = 0

    def add(self, record: "VoteRecord") -> None:
        self.votes += 1
        self.ones += record.verdict == 1
        self.twos += record.verdict == 2
        self.invalid += record.verdict is None
        self.cut_off += record.finish_reason == "length"
        self.truncated_inputs += record.truncated_input
        self.forced += record.forced
        self.tokens += record.tokens

    def __str__(self) -> str:
        return (
            f"{self.votes} votes (for the response shown first: {self.ones}, second: {self.twos}, invalid: "
            f"{self.invalid}, cut off at the token limit: {self.cut_off}, with inputs truncated: "
            f"{self.truncated_inputs}, forced by the thinking budget: {self.forced}); {self.tokens} tokens"
        )


class _Problems:
    """Says each problem on stderr, and counts them."""

    count = 0

    def __call__(self, message: str) -> None:
        warn(message)
        self.count += 1


def _open(path: Path) -> "tuple[VoteLog, _Problems]":
    from rrm_jax.judging.store import VoteLog

    problems = _Problems()
    return VoteLog(path, write=False, report=problems), problems


def _choose(log: "VoteLog", beginnings: list[str] | None) -> list[str]:
    """Digests of the store's settings, by their beginnings."""
    from rrm_jax.errors import RrmError

    if not beginnings:
        return list(log.settings)
    chosen: dict[str, None] = {}
    for beginning in beginnings:
        fitting = [name for name in log.settings if name.startswith(beginning)]
        if len(fitting) != 1:
            held = "".join(f"\n  {name}" for name in log.settings)
            raise RrmError(f"--settings {beginning!r} begins {len(fitting)} of the digests in {log.path}:{held}")
        chosen[fitting[0]] = None
    return list(chosen)


def _merge(source: "VoteLog", into: "VoteLog", settings: Collection[str], problems: _Problems) -> "Merged":
    from rrm_jax.judging.store import merge

    progress = Progress("votes", len(source))
    with progress:
        return merge(source, into, settings, problems, progress.advance)


def _print_settings(settings: dict[str, str]) -> None:
    for key, value in settings.items():
        print(f"  {key}: {value}")


def _end(problems: _Problems) -> None:
    if problems.count:
        warn(f"{problems.count} vote(s) contradict an earlier one, which counts")
        raise typer.Exit(1)
