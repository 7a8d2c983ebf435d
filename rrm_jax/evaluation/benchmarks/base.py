"""What a benchmark is: items to be judged, what was said of them, and the rules by which that becomes numbers.

An item is a query with responses, and the games that are to be judged between them; or, of best-of-N, candidates of
which one is to be picked; or a question that a model is to answer. A benchmark's module says how its published rows
become items, and what is counted of an item (`measure`), as a row of numbers; `scores.py` sums these and gives
intervals. All of it is pure.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rrm_jax.data.table_files import Row
from rrm_jax.data.verifiers import Outcome
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks.scores import Node, Score, Table
from rrm_jax.judging.judge import OrderPolicy, Shown, random_order
from rrm_jax.judging.store import digest

Label = Literal[0, 1, 2]
Credit = Literal["0", "0.5", "random", "exclude", "tie"]


@dataclasses.dataclass(frozen=True)
class Game:
    """Responses `i` and `j` of an item against each other. `label` 1: i is the better one, 2: j is, 0: neither."""

    i: int
    j: int
    label: Label


@dataclasses.dataclass(frozen=True)
class Item:
    """`group` is the subset that it is reported under. An item has either `games`, or `correct`: which of its
    candidates are right. `answers` and `rewards` are the candidates' final answers, and a reward model's numbers. Of a
    question `gold` is the right final answer, by the rule `verifier` (`data/verifiers.py`), and `level` what else it is
    reported under."""

    id: str
    group: str
    query: str
    responses: tuple[str, ...]
    games: tuple[Game, ...] = ()
    correct: tuple[bool, ...] | None = None
    answers: tuple[str | None, ...] | None = None
    rewards: tuple[float, ...] | None = None
    gold: str | None = None
    verifier: str = ""
    level: str = ""

    def name_of(self, game: Game) -> str:
        """The id of one of its games, which addresses the order of showing it."""
        return self.id if len(self.games) == 1 else f"{self.id}/{game.i}-{game.j}"


@dataclasses.dataclass(frozen=True)
class Ballot:
    """A vote without its text. `verdict` is in the game's own order: 1, 2, 0 (a judge that says they are as good), or
    None (invalid). `order` "21" showed j first. `twin`: the same vote was asked in the other order as well."""

    order: Shown
    verdict: Label | None
    tokens: int = 0
    cut_off: bool = False
    truncated_input: bool = False
    twin: bool = False


@dataclasses.dataclass(frozen=True)
class Pick:
    """The candidate picked by a tournament, by position, and what that took. `invalid` counts votes."""

    best: int
    comparisons: int = 0
    votes: int = 0
    invalid: int = 0
    no_winner: int = 0
    tokens: int = 0
    cut_off: int = 0
    truncated_inputs: int = 0


@dataclasses.dataclass(frozen=True)
class Try:
    """A response to a question, without its text. `answer` is what it ends with, for majorities (None: nothing);
    `tokens` 0: not known."""

    outcome: Outcome
    answer: str | None
    tokens: int = 0
    cut_off: bool = False
    truncated_input: bool = False


@dataclasses.dataclass(frozen=True)
class Tries:
    """The responses to a question, in their order."""

    tries: tuple[Try, ...]


Judged = tuple[tuple[Ballot, ...], ...] | Pick | Tries
Verdicts = Mapping[str, Judged]
"""What was said of items, by their ids: the ballots of each game, or a pick; or how they were answered."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """What an invalid game counts as (no valid vote), and a tied one (as many valid votes for each, or a judge that
    says so): "0" wrong, "0.5" half right, "random" right or wrong by a coin that belongs to (seed, game), "exclude" not
    counted, "tie" as one that says the two are as good (wrong, but where that is the label).

    `order`: which votes count: None all, "given" those that showed the pair as it stands, "both" all of those that were
    asked in both orders, "random" one of each two such votes, by the coin that shows pairs in random order.
    """

    invalid: Credit = "0.5"
    ties: Credit = "0.5"
    order: OrderPolicy | None = None
    seed: int = 0

    def counted(self, name: str, ballots: Sequence[Ballot]) -> tuple[Ballot, ...]:
        """The ballots that count of those of the game `name`, whose votes come in their order."""
        if self.order == "given":
            kept = tuple(_alone(ballot) for ballot in ballots if ballot.order == "12")
            if ballots and not kept:
                raise RrmError(f"order given: game {name!r} was not judged as it stands, only the other way round")
            return kept
        if self.order is None or (self.order == "random" and not asked_both(ballots)):
            return tuple(ballots)
        if not asked_both(ballots):
            raise RrmError(f"order both: game {name!r} was not judged in both orders")
        if self.order == "both":
            return tuple(ballots)
        by_order = {order: [ballot for ballot in ballots if ballot.order == order] for order in ("12", "21")}
        orders = [random_order(self.seed, name, vote) for vote in range(len(ballots) // 2)]
        return tuple(_alone(by_order[order][vote]) for vote, order in enumerate(orders))

    def credit(self, name: str, decided: Label | None, label: Label) -> float:
        """How right `decided` is, from 0 to 1; nan: not counted."""
        if decided is not None and (decided != 0 or label == 0):
            return float(decided == label)
        rule = self.invalid if decided is None else self.ties
        if rule == "random":
            return float(coin(self.seed, name))
        if rule == "tie":
            return float(label == 0)
        return float("nan") if rule == "exclude" else float(rule)


def coin(seed: int, name: str) -> bool:
    """A fair coin that belongs to (seed, name): where `Policy` leaves an item to chance."""
    return bool(int(digest([seed, "credit", name])[:2], 16) & 1)


def _alone(ballot: Ballot) -> Ballot:
    return dataclasses.replace(ballot, twin=False)


def asked_both(ballots: Sequence[Ballot]) -> bool:
    """Whether every vote was asked in both orders; False without votes."""
    return bool(ballots) and all(ballot.twin for ballot in ballots)


def decide(ballots: Sequence[Ballot]) -> Label | None:
    """What most valid votes say; 0: as many for each; None: no valid vote."""
    valid = [ballot.verdict for ballot in ballots if ballot.verdict is not None]
    if not valid:
        return None
    ones, twos = valid.count(1), valid.count(2)
    return 0 if ones == twos else 1 if ones > twos else 2


def credits_of(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """The credit of each of an item's games."""
    assert isinstance(judged, tuple)
    found = []
    for game, ballots in zip(item.games, judged, strict=True):
        name = item.name_of(game)
        found.append(policy.credit(name, decide(policy.counted(name, ballots)), game.label))
    return found


def pair_measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """[credit, 1] of an item with one game, whose sums' ratio is the accuracy; [0, 0] where it does not count."""
    (credit,) = credits_of(item, judged, policy)
    return [credit, 1.0] if credit == credit else [0.0, 0.0]


@dataclasses.dataclass(frozen=True)
class Published:
    """Somebody's published numbers, in percent by the names of our scores. Never results of ours."""

    who: str
    where: str
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One published benchmark.

    `columns` are what a row must have; `parse(row, at)` makes the item of row `at` (from 0) of its file, or raises
    RowError. `rows` are how many rows of each group are published, where that is known, and `games` how many games one
    mostly has. `measure` gives what is counted of an item, and `tree` the scores that are made of its sums. `order` and
    `policy` are the published convention; with `shares_votes` a game counts the share of its votes, and none is tied.
    Of kind "answers" a model answers, and no judge judges; `instruction` is the line that follows a question, and
    `shuffled(seed)` the `parse` of rows whose options are shown in an order drawn by the seed. `further(table, samples,
    seed)` are scores that are no function of sums. `takes_answers`: rows are prompts alone, and what is judged are a
    model's answers and a baseline's, from files. `right_first`: the published rows have the better response first, so
    that it must not always be shown there.
    `read_verdicts(content, items)` reads published verdict files: what each judge in it said.
    `unverified` says what of this we could not check.
    """

    name: str
    what: str
    hub: str
    revision: str
    licence: str
    citation: str
    columns: tuple[str, ...]
    parse: Callable[[Row, int], Item]
    measure: Callable[[Item, Judged, Policy], Sequence[float]]
    tree: Callable[[Table], tuple[Node, ...]]
    kind: Literal["pairs", "best-of-n", "answers"] = "pairs"
    split: str = "test"
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    games: int = 1
    order: OrderPolicy = "random"
    policy: Policy = Policy()
    shares_votes: bool = False
    right_first: bool = False
    instruction: str = ""
    shuffled: Callable[[int], Callable[[Row, int], Item]] | None = None
    further: Callable[[Table, int, int], tuple[Score, ...]] | None = None
    takes_answers: bool = False
    adapt: Callable[[Sequence[str]], Callable[[Row, int], Item] | None] | None = None
    """For columns that are not `columns`: another layout's `parse`, or None."""
    group_of_file: Callable[[str], str] | None = None
    """Where a row does not say its group: what its file's name says."""
    read_verdicts: Callable[[Any, Sequence[Item]], Mapping[str, Verdicts] | None] | None = None
    published: tuple[Published, ...] = ()
    unverified: str = ""
