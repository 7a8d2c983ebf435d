"""PPE's correctness sets: 512 prompts with 32 responses each and whether each is right, of MMLU-Pro, MATH, GPQA, IFEval
and MBPP+. Each set is two benchmarks: pairs of a right and a wrong response, and picking the best of the 32.

Written against lmarena-ai/PPE-*-Best-of-K, split `train`: `prompt`, `scores` (32 booleans), `response_1` …
`response_32`, and `sampled_conflict_pairs`, 5 pairs of positions (from 0) with one right response each. Items are named
by the number of their row, from 0, as in the authors' released logs. The header of a prompt is left out as in the
authors' code: what is before `<problem>` (MATH), `Question:` (MMLU-Pro) or `Question` (GPQA).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import text_field
from rrm_jax.data.table_files import Row
from rrm_jax.evaluation.benchmarks import best_of_n
from rrm_jax.evaluation.benchmarks.base import (
    Benchmark,
    Game,
    Item,
    Judged,
    Pick,
    Policy,
    Published,
    Verdicts,
    credits_of,
)  # fmt: skip
from rrm_jax.evaluation.benchmarks.scores import Node, Table, ratio

CANDIDATES, ROWS = 32, 512
_RESPONSES = tuple(f"response_{number}" for number in range(1, CANDIDATES + 1))
_SINGLE = "released results, a single round"
SETS = {
    "mmlu-pro": ("MMLU-Pro", "Question:"), "math": ("MATH", "<problem>"), "gpqa": ("GPQA", "Question"),
    "ifeval": ("IFEval", ""), "mbpp-plus": ("MBPP-Plus", ""),
}  # fmt: skip
"""The hub's name of each set, and what ends its prompts' header."""
_PAIRS = {"mmlu-pro": (69.3, 80.9), "math": (89.6, 94.5), "gpqa": (57.2, 67.8)}
_KNOCKOUT = {"mmlu-pro": (69.1, 81.3), "math": (82.0, 89.8), "gpqa": (49.2, 61.1)}


def _scores(row: Row) -> tuple[bool, ...]:
    scores = row.get("scores")
    if not isinstance(scores, list) or len(scores) != CANDIDATES or any(score not in (0, 1) for score in scores):
        raise RowError(f"scores must be a list of {CANDIDATES} booleans")
    return tuple(map(bool, scores))


def _query(row: Row, header: str) -> str:
    prompt = text_field(row, "prompt")
    _, found, rest = prompt.partition(header) if header else ("", "", prompt)
    if header and not found:
        raise RowError(f"the prompt has no {header!r}, after which the question would begin")
    return rest.strip()


def _parse_pairs(name: str, row: Row, at: int) -> Item:
    scores, pairs, games = _scores(row), row.get("sampled_conflict_pairs"), []
    if not isinstance(pairs, list) or not pairs:
        raise RowError("sampled_conflict_pairs must be a list of at least one pair")
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or any(type(c) is not int or not 0 <= c < CANDIDATES for c in pair)
        ):
            raise RowError(f"sampled_conflict_pairs must hold pairs of positions from 0 to {CANDIDATES - 1}")
        i, j = pair
        if scores[i] == scores[j]:
            raise RowError(f"sampled_conflict_pairs: of {i} and {j} not just one is right")
        games.append(Game(i, j, 1 if scores[i] else 2))
    responses = tuple(text_field(row, key) for key in _RESPONSES)
    return Item(str(at), name, _query(row, SETS[name][1]), responses, tuple(games))


def _parse_candidates(name: str, row: Row, at: int) -> Item:
    responses = tuple(text_field(row, key) for key in _RESPONSES)
    return Item(str(at), name, _query(row, SETS[name][1]), responses, correct=_scores(row))


def _measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """Credits of the games, and how many count."""
    credits = [credit for credit in credits_of(item, judged, policy) if credit == credit]
    return [sum(credits), float(len(credits))]


def _tree(table: Table) -> tuple[Node, ...]:
    return (ratio("Accuracy over pairs", tuple(table.ids)),)


def read_knockout(content: Any, items: Sequence[Item]) -> Mapping[str, Verdicts] | None:
    """A released log of knockouts: `{round_1: {match: {rival_1, rival_2, winner, pred}}, …}`, a list entry a prompt;
    `pred` 0 is an invalid verdict, after which a coin was tossed. Raises RowError for a log that contradicts itself."""
    if not isinstance(content, dict) or not isinstance(content.get("round_1"), dict):
        return best_of_n.read_verdicts(content, items)
    rounds = [content[f"round_{number}"] for number in range(1, len(content) + 1)]
    picks: dict[str, Judged] = {}
    for at in range(len(rounds[0]["0"]["winner"])):
        standing: set[int] | None = None
        played = invalid = 0
        for number, matches in enumerate(rounds, start=1):
            winners = set()
            met: list[int] = []
            for name, match in matches.items():
                rivals, winner, said = (
                    (match["rival_1"][at], match["rival_2"][at]),
                    match["winner"][at],
                    match["pred"][at],
                )
                if winner not in rivals or said not in (0, 1 + rivals.index(winner)):
                    raise RowError(
                        f"prompt {at}, round {number}, match {name}: the winner is not who the verdict names"
                    )
                met += rivals
                winners.add(winner)
                played, invalid = played + 1, invalid + (said == 0)
            if len(set(met)) != len(met) or (standing is not None and set(met) != standing):
                raise RowError(f"prompt {at}, round {number}: those who meet are not the last round's winners")
            standing = winners
        if standing is None or len(standing) != 1:
            raise RowError(f"prompt {at}: the last round has {len(standing or ())} winners")
        picks[str(at)] = Pick(standing.pop(), played, played, invalid, invalid)
    return {"knockout": picks}


def _published(numbers: Mapping[str, tuple[float, float]], key: str, score: str, where: str) -> tuple[Published, ...]:
    if key not in numbers:
        return ()
    small, large = numbers[key]
    return Published("RRM-7B", where, {score: small}), Published("RRM-32B", where, {score: large})


def _benchmarks(key: str) -> tuple[Benchmark, Benchmark]:
    name, _ = SETS[key]
    common: dict[str, Any] = {
        "hub": f"lmarena-ai/PPE-{name}-Best-of-K", "revision": "split train, as public readers of it describe it",
        "licence": "see its card (not at hand)", "citation": "Frick et al. 2024, arXiv 2410.14872", "split": "train",
        "rows": {key: ROWS},
        "unverified": "The rows were not at hand. What follows `<problem>` in MATH's prompts is kept to the end.",
    }  # fmt: skip
    of: Callable[[Any], Any] = lambda parse: functools.partial(parse, key)  # noqa: E731
    pairs = Benchmark(
        name=f"ppe-{key}", what=f"right and wrong responses to {name}, in pairs",
        columns=("prompt", "scores", "sampled_conflict_pairs", *_RESPONSES), parse=of(_parse_pairs), measure=_measure,
        games=5, tree=_tree, published=_published(_PAIRS, key, "Accuracy over pairs", _SINGLE), **common,
    )  # fmt: skip
    candidates = Benchmark(
        name=f"ppe-{key}-best-of-n", what=f"the best of 32 responses to {name}", kind="best-of-n",
        columns=("prompt", "scores", *_RESPONSES), parse=of(_parse_candidates), measure=best_of_n.measure,
        tree=best_of_n.tree, read_verdicts=read_knockout,
        published=_published(_KNOCKOUT, key, best_of_n.PICKED, "knockout, as remembered"), **common,
    )  # fmt: skip
    return pairs, candidates


BENCHMARKS = tuple(benchmark for key in SETS for benchmark in _benchmarks(key))
