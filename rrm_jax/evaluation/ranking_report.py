"""What a set of tournaments found, in lines of Markdown that read well on a terminal too.

Axis: C candidates. Labels and ids are untrusted text: shown as text, whatever they hold.
"""

import dataclasses
import itertools
import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from rrm_jax.errors import RrmError
from rrm_jax.ranking.intransitivity import Intransitivity, Pick, checked_points, of_tournaments
from rrm_jax.ranking.protocol import Match, Result

MOST_ANALYSED = 2000  # candidates; the time for cycles and upsets grows with their number's cube
Game = tuple[int, int, int | None]  # candidates i and j; 1 (i won), 2 (j won) or None (no winner)


@dataclasses.dataclass(frozen=True)
class Tournament:
    """One query's tournament, as it is reported and drawn.

    `labels[c]` names candidate c (any text: it is cut where it is shown); `ratings`, `low` and `high` [C] are on one
    scale, NaN or infinite where there is none; `points` [C, C] are i's against j, 1 a game. `rounds` are the matches
    as they were played, and `kind` is the strategy's name: what has "knockout" in it is drawn as a bracket.
    `agreeing` of `both_orders` is the order consistency of `order_agreement`, `first_won` of `ordered_votes` the
    position bias of `first_shown`. The rest are counts as in
    `rrm_jax.ranking.protocol.Result`.
    """

    id: str
    labels: Sequence[str]
    ratings: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    points: np.ndarray
    rounds: Sequence[Sequence[Game]]
    kind: str
    ranking: Sequence[int]
    comparisons: int = 0
    votes: int = 0
    tokens: int = 0
    invalid: int = 0
    spared: int = 0
    invalid_votes: int = 0
    cut_off: int = 0
    truncated_inputs: int = 0
    forced: int = 0
    agreeing: float = 0.0
    both_orders: int = 0
    first_won: int = 0
    ordered_votes: int = 0
    stopped: str = ""

    def __post_init__(self):
        count = len(self.labels)
        sizes = {len(self.ratings), len(self.low), len(self.high), len(checked_points(self.points))}
        if sizes != {count} or sorted(self.ranking) != list(range(count)):
            raise RrmError(
                f"tournament {self.id!r}: labels, ratings, low, high, points and ranking must be of the same candidates"
            )
        if any(not 0 <= c < count for game in itertools.chain(*self.rounds) for c in game[:2]):
            raise RrmError(f"tournament {self.id!r}: a match names a candidate outside 0 … {count - 1}")


def tournament_of(result: Result, labels: Sequence[str], rounds: Sequence[Sequence[Match]], kind: str) -> Tournament:
    """A result with the matches behind it; its ratings are the strengths, whose intervals are known.

    A judged comparison without a winner gives ½ point to each, one that was spared gives none.
    """
    points = np.zeros((len(labels), len(labels)))
    games: list[list[Game]] = []
    for matches in rounds:
        games.append([(match.i, match.j, match.outcome.winner if match.outcome else None) for match in matches])
        for match in matches:
            if match.outcome is not None:
                share = {1: 1.0, 2: 0.0, None: 0.5}[match.outcome.winner]
                points[match.i, match.j] += share
                points[match.j, match.i] += 1 - share
    counts = (
        "comparisons votes tokens invalid spared invalid_votes cut_off truncated_inputs forced low high ranking stopped"
    )
    agreeing, both = order_agreement(list(itertools.chain(*rounds)))
    first_won, ordered = first_shown(list(itertools.chain(*rounds)))
    return Tournament(
        id=result.id,
        labels=labels,
        ratings=result.strengths,
        points=points,
        rounds=games,
        kind=kind,
        agreeing=agreeing,
        both_orders=both,
        first_won=first_won,
        ordered_votes=ordered,
        **{name: getattr(result, name) for name in counts.split()},
    )


def elimination(tournament: Tournament, most: int) -> tuple[list[list[tuple[int, int, bool]]], int]:
    """The rounds that end in a bracket of at most `most` candidates, and how many rounds come before these.

    A match is (who goes through, who is out, whether it had a winner). Where it had none, who went through is the one
    who plays on, or is ranked higher.
    """
    rounds = [list(games) for games in tournament.rounds]
    place = {c: at for at, c in enumerate(tournament.ranking)}
    bracket: list[list[tuple[int, int, bool]]] = []
    later: set[int] = set()  # those who play on
    for at in range(len(rounds) - 1, -1, -1):
        players = [c for game in rounds[at] for c in game[:2]]
        matches = []
        for i, j, winner in rounds[at]:
            i_through = winner == 1 or (winner is None and (i in later or (j not in later and place[i] < place[j])))
            matches.append((i, j, winner is not None) if i_through else (j, i, winner is not None))
        out = {loser for _, loser, _ in matches}
        if len(set(players)) < len(players) or out & later or len(later | set(players)) > most:
            return bracket, at + 1
        bracket.insert(0, matches)
        later |= set(players)
    return bracket, 0


def order_agreement(matches: Sequence[Match]) -> tuple[float, int]:
    """How many pairs with a valid vote in both orders agree, and how many such pairs there are.

    A pair with several votes an order counts as the share of its votes, one of each order, that name the same
    candidate.
    """
    votes: dict[tuple[int, int], dict[bool, list[bool]]] = {}
    for match in matches:
        if match.outcome is None:
            continue
        turned = match.i > match.j
        of_pair = votes.setdefault((min(match.i, match.j), max(match.i, match.j)), {True: [], False: []})
        for vote, i_first in zip(match.outcome.votes, match.outcome.orders, strict=False):
            if vote is not None:
                of_pair[i_first != turned].append((vote == 1) != turned)
    shares = [[sum(v) / len(v) for v in both.values()] for both in votes.values() if all(both.values())]
    return sum(a * b + (1 - a) * (1 - b) for a, b in shares), len(shares)


def first_shown(matches: Sequence[Match]) -> tuple[int, int]:
    """How many valid votes name the candidate that was shown first, and how many valid votes there are."""
    named = [
        (vote == 1) == i_first
        for match in matches
        if match.outcome is not None
        for vote, i_first in zip(match.outcome.votes, match.outcome.orders, strict=False)
        if vote is not None
    ]
    return sum(named), len(named)


def position_line(first_won: int, votes: int) -> str:
    """The position bias, with a 95 % interval: the order of each vote was drawn, so that without a bias half of them
    name the one shown first, however good the candidates are."""
    first, second = first_won + 0.5, votes - first_won + 0.5  # half a vote more for either keeps the odds finite
    error = 1.96 * math.sqrt(1 / first + 1 / second)
    return (
        f"position bias: the one shown first won {100 * first_won / votes:.1f} % of {votes} valid votes "
        f"(log-odds {math.log(first / second):+.2f} ± {error:.2f})"
    )


def shown(text: str, width: int) -> str:
    """`text` on one line of at most `width` columns, without characters that act instead of being seen.

    Controls, text-direction marks and what no file may hold appear as escapes; blanks of any kind as one space.
    """
    out: list[str] = []
    used = 0
    for character in " ".join(text[: 4 * width + 4].split()) + ("…" if len(text) > 4 * width + 4 else ""):
        character = _seen(character)
        taken = columns(character)
        if used + taken > width:
            while out and used > width - 1:
                used -= columns(out.pop())
            return "".join(out) + "…"
        out.append(character)
        used += taken
    return "".join(out)


def readable(text: str) -> str:
    """`text` on its own lines, without characters that act instead of being seen: a terminal obeys none of it."""
    return "".join(character if character in "\n\t" else _seen(character) for character in text)


def _seen(character: str) -> str:
    acting = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    # Joiners belong to the spelling of several scripts, and to emoji.
    return f"\\u{ord(character):04x}" if acting and character not in "\u200c\u200d" else character


def columns(text: str) -> int:
    """The columns that shown text takes on a terminal: two for a wide character, none for a mark on another."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def as_code(text: str, width: int) -> str:
    """`shown` as a Markdown code span, in which nothing but a backtick and, in a table, a bar has a meaning."""
    return "`" + (shown(text, width).replace("`", "'").replace("|", "\\|") or " ") + "`"


_BARE_PIPE = re.compile(r"(?<!\\)\|")


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table with its columns aligned; the first row is the heading, the first `left` columns are text."""
    rows = [[_BARE_PIPE.sub(r"\|", cell) for cell in row] for row in rows]
    widths = [max(3, *(columns(row[at]) for row in rows)) for at in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blank = " " * (width - columns(cell))
            cells.append(cell + blank if at < left else blank + cell)
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return [line(rows[0]), line(rule), *(line(row) for row in rows[1:])]


def number(value: float) -> str:
    """With one digit behind the point; a dash for what is not finite."""
    return f"{value:.1f}" if math.isfinite(value) else "–"


def half(value: float) -> str:
    """A count of points, which come in halves."""
    return f"{value:g}"


def ranking_table(tournament: Tournament, most: int = 64, width: int = 40) -> list[str]:
    """The ranking with its intervals, best first; the first `most` candidates, and how many are left out."""
    t = tournament
    points = checked_points(t.points)
    games = points + points.T
    rows = [("candidate", "text", "rank", "rating", "95 % interval", "points", "games")]
    for rank, c in enumerate(t.ranking[:most], start=1):
        interval = f"{number(t.low[c])} … {number(t.high[c])}"
        taken, played = half(points[c].sum()), half(games[c].sum())
        rows.append((f"#{c}", as_code(t.labels[c], width), str(rank), number(t.ratings[c]), interval, taken, played))
    left_out = len(t.ranking) - most
    return table(rows, left=2) + ([f"… and {left_out} more candidates"] if left_out > 0 else [])


def counts_lines(tournaments: Sequence[Tournament]) -> list[str]:
    """What was spent and what went wrong, and the order consistency, summed over the tournaments; one fact a line."""

    def total(field: str) -> int:
        return sum(getattr(t, field) for t in tournaments)

    def each(field: str) -> str:
        return f"{total(field) / len(tournaments):.1f} a query" if len(tournaments) > 1 else "in one query"

    lines = [
        f"comparisons: {total('comparisons')} ({each('comparisons')}; without a winner: {total('invalid')}, "
        f"spared because both answers are the same: {total('spared')})",
        f"votes: {total('votes')} (invalid: {total('invalid_votes')}, cut off at the token limit: {total('cut_off')}, "
        f"with inputs truncated: {total('truncated_inputs')}, forced by the thinking budget: {total('forced')}); "
        f"{total('tokens')} tokens ({each('tokens')})",
    ]
    agreeing, both = total("agreeing"), total("both_orders")
    if both:
        lines.append(
            f"order consistency: {agreeing / both:.4f} = {half(round(agreeing, 2))} / {both} pairs in both orders"
        )
    else:
        lines.append("order consistency: no pair has a valid vote in both orders")
    if votes := total("ordered_votes"):
        lines.append(position_line(total("first_won"), votes))
    stopped = sorted({t.stopped for t in tournaments if t.stopped})
    for reason in stopped:
        lines.append(f"stopped early ({shown(reason, 40)}): {sum(t.stopped == reason for t in tournaments)} queries")
    return lines


def intransitivity_lines(found: Intransitivity | None) -> list[str]:
    """Cycles, upsets, winners and what they cost; one fact a line."""
    if found is None:
        return []
    queries = found.tournaments
    if found.triples:
        mean, deviation = found.chance_cycles
        zeta = "" if found.consistence is None else f"; Kendall's ζ {found.consistence:.3f}"
        cycles = (
            f"3-cycles: {found.cycles / found.triples:.4f} = {found.cycles} / {found.triples} triples with three "
            f"decided pairs (by chance 0.25, {mean:.1f} ± {deviation:.1f}){zeta}"
        )
    else:
        cycles = "3-cycles: no three candidates have all beaten or lost to each other"
    bound = f"exact in {found.exact_upsets} of {_queries(queries)}, else an upper bound"
    return [
        cycles,
        f"fewest upsets that explain the results: {half(found.upsets)} of {found.pairs} decided pairs ({bound})",
        f"a candidate that beats all others (Condorcet): in {found.condorcet} of {_queries(queries)}; "
        f"top cycle: {_mean(found.top_cycle, queries)} of {_mean(found.candidates, queries)} candidates",
        _pick_line("the one picked", found.picked, found),
        _pick_line("a random knockout's champion, undecided pairs by a coin", found.knockout, found)
        + ("" if found.exact_knockouts == queries else f" ({queries - found.exact_knockouts} by drawn brackets)"),
    ]


def _queries(count: int) -> str:
    return f"{count} quer{'y' if count == 1 else 'ies'}"


def _mean(total: float, count: int) -> str:
    return f"{total / count:.4g}"


def _pick_line(name: str, pick: Pick, found: Intransitivity) -> str:
    queries = found.tournaments
    condorcet = f"the Condorcet winner {100 * pick.condorcet / found.condorcet:.1f} %, " if found.condorcet else ""
    return (
        f"{name}: {condorcet}in the top cycle {100 * pick.in_top_cycle / queries:.1f} %, "
        f"beaten head to head by {_mean(pick.beaten_by, queries)} of {_mean(pick.met, queries)} opponents, "
        f"rank {_mean(pick.rank, queries)} by share of points"
    )


def summary_lines(tournaments: Sequence[Tournament], seed: int = 0) -> list[str]:
    """Counts and intransitivity over all tournaments; one fact a line. `seed` draws the brackets of large ones."""
    small = [t for t in tournaments if len(t.labels) <= MOST_ANALYSED]
    found = of_tournaments([t.points for t in small], [t.ranking[0] for t in small], seed)
    lines = counts_lines(tournaments) + intransitivity_lines(found)
    if large := len(tournaments) - len(small):
        lines.append(
            f"cycles and upsets were not looked for in {_queries(large)} of more than {MOST_ANALYSED} candidates"
        )
    return lines
