"""What verdicts count as, against sums done by hand, and whose they are."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from rrm_jax.data.records import Pair
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import (
    BENCHMARKS,
    Ballot,
    Policy,
    Score,
    benchmark_of,
    compare,
    load,
    read_verdict_file,
    score,
)
from rrm_jax.evaluation.benchmarks.harness import pair_of, table_of
from rrm_jax.evaluation.statistics import wilson_interval
from rrm_jax.judging.judge import content_digest
from tests.evaluation.benchmark_rows import both, by_name, given, rm_bench_rows, write_rows


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"id": str(at), "query": f"q{at}", "response_1": "x", "response_2": "y", "label": 1 + at % 2}
        for at in range(40)
    ]
    return load("pairs", write_rows(tmp_path / "pairs.jsonl", rows))


def accuracy(loaded, said, samples=0, **policy) -> Score:
    return score(loaded.benchmark, loaded.items, said, Policy(**policy), samples=samples)[0]


def test_invalid_and_tied_games_count_as_told(pairs):
    said = {str(at): given(1 + at % 2) for at in range(20)}  # right
    said |= {str(at): given(None) for at in range(20, 30)} | {str(at): both(1, 2) for at in range(30, 40)}
    assert accuracy(pairs, said).value == (20 + 5 + 5) / 40
    assert accuracy(pairs, said, invalid="0").value == (20 + 5) / 40
    assert accuracy(pairs, said, invalid="0", ties="0").value == 20 / 40
    excluded = accuracy(pairs, said, invalid="exclude")
    assert (excluded.value, excluded.items, excluded.counts["no_winner"]) == (25 / 30, 30, 20)
    coins = [accuracy(pairs, said, invalid="random", ties="0", seed=seed).value * 40 - 20 for seed in range(40)]
    assert coins == [accuracy(pairs, said, invalid="random", ties="0", seed=s).value * 40 - 20 for s in range(40)]
    assert all(coin == int(coin) and 0 <= coin <= 10 for coin in coins)
    assert 4 < sum(coins) / 40 < 6  # of 400 coins, 5 standard deviations from 5
    counts = accuracy(pairs, said).counts
    assert (counts["invalid"], counts["no_winner"], counts["votes"]) == (10, 20, 50)


def test_orders_count_as_told(pairs):
    said = {str(at): both(1, 1 if at < 10 else 2) for at in range(40)}  # the first shown, from the tenth on
    assert accuracy(pairs, said, order="both").value == (5 + 30 / 2) / 40
    assert accuracy(pairs, said, order="given").value == 20 / 40
    drawn = accuracy(pairs, said, order="random")
    assert drawn.counts["votes"] == 40
    assert accuracy(pairs, said, order="both").counts["consistent"] == 10
    turned = {str(at): (both(1, 1)[0][1:],) for at in range(40)}
    with pytest.raises(RrmError, match=r"order given: game '\d+' was not judged as it stands"):
        accuracy(pairs, turned, order="given")
    with pytest.raises(RrmError, match="not judged in both orders"):
        accuracy(pairs, {"0": given(1)}, order="both")


def test_what_was_not_judged_is_not_scored(pairs):
    assert accuracy(pairs, {"0": given(1), "1": given(1)}).items == 2
    with pytest.raises(RrmError, match="none of the 40 items"):
        accuracy(pairs, {})


def test_intervals_are_those_of_a_binomial(pairs):
    said = {str(at): given(1 + at % 2 if at < 30 else 2 - at % 2) for at in range(40)}
    one = accuracy(pairs, said, samples=4000)
    deviation = math.sqrt(0.75 * 0.25 / 40)
    assert one.value == 0.75
    assert one.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.03)
    assert one.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.03)
    assert one == accuracy(pairs, dict(reversed(said.items())), samples=4000)


def test_two_runs_are_compared_over_the_same_items(pairs):
    right = {str(at): given(1 + at % 2) for at in range(40)}
    wrong = {str(at): given(2 - at % 2) for at in range(40)}
    first = right
    second = {id: (wrong if int(id) < 12 else right)[id] for id in map(str, range(36))}
    first = first | {"20": wrong["20"], "21": wrong["21"]}
    (found,) = compare(pairs.benchmark, pairs.items, first, second, samples=2000)
    assert (found.items, found.only_first, found.only_second) == (36, 12, 2)
    assert found.mcnemar == pytest.approx(binomtest(2, 14).pvalue)
    assert found.first - found.second == pytest.approx(10 / 36)
    assert found.low is not None
    assert found.high is not None
    assert found.p_value is not None
    assert found.low < 10 / 36 < found.high
    assert found.p_value < 0.02
    (same,) = compare(pairs.benchmark, pairs.items, first, first)
    assert (same.low, same.high, same.p_value, same.mcnemar) == (0, 0, 1, 1)
    with pytest.raises(RrmError, match="no item in common"):
        compare(pairs.benchmark, pairs.items, {"0": given(1)}, {"1": given(1)})


def test_macro_f1_intervals_use_whole_items():
    """The bootstrap of F1 equals one that draws items and counts again, by the same draws."""
    benchmark = BENCHMARKS["pandalm"]
    rows = [
        benchmark.parse(
            {"idx": at, "instruction": "i", "input": "", "response1": "x", "response2": "y"}
            | {f"annotator{n}": label for n in (1, 2, 3)},
            at,
        )
        for at, label in enumerate([1, 2, 0] * 10)
    ]
    said = {item.id: given((1, 2, 2, 0)[at % 4]) for at, item in enumerate(rows)}
    table = table_of(benchmark, rows, said)
    named = {node.name: node for node in benchmark.tree(table)}
    node = named["macro F1 over 1, 2 and tie"]
    chosen = {group: np.array([0, 0, *range(len(ids))]) for group, ids in table.ids.items()}
    sums = {group: table.values[group][places].sum(axis=0) for group, places in chosen.items()}
    labels, answers = [], []
    by_id = {item.id: item for item in rows}
    for group, places in chosen.items():
        for place in places:
            item = by_id[table.ids[group][place]]
            labels.append(item.games[0].label)
            answers.append(said[item.id][0][0].verdict)
    f1s = []
    for k in (0, 1, 2):
        hits = sum(a == b == k for a, b in zip(labels, answers, strict=True))
        f1s.append(2 * hits / (labels.count(k) + answers.count(k)))
    assert float(node.of(sums)) == pytest.approx(sum(f1s) / 3)


def judged_row(pair: Pair, **changes) -> dict:
    vote = {"order": "12", "verdict": 1, "text": "", "tokens": 3, "finish_reason": "stop", "truncated_input": False}
    return {"id": pair.id, "winner": 1, "votes": [vote], "content": content_digest(pair)} | changes


def test_verdict_files_of_something_else(pairs, tmp_path):
    item = pairs.items[0]
    pair = Pair(item.id, item.query, *item.responses)
    read = lambda row: read_verdict_file(pairs.benchmark, pairs.items, write_rows(tmp_path / "v.jsonl", [row]))  # noqa: E731
    assert read(judged_row(pair)) == {"judge": {"0": ((Ballot("12", 1, 3),),)}}
    with pytest.raises(RrmError, match="row 1 is of judgebench, not of pairs"):
        read(judged_row(pair, benchmark="judgebench"))
    with pytest.raises(RrmError, match="was judged on other texts"):
        read(judged_row(dataclasses.replace(pair, query="another")))
    with pytest.raises(RrmError, match="no verdict of an item of this data"):
        read(judged_row(dataclasses.replace(pair, id="elsewhere")))
    with pytest.raises(RrmError, match="no verdict file of pairs"):
        read({"idx": 0, "gpt_result": "1"})
    (tmp_path / "v.json").write_text("{", encoding="utf-8")
    with pytest.raises(RrmError, match="neither JSON nor JSON lines"):
        read_verdict_file(pairs.benchmark, pairs.items, tmp_path / "v.json")


def test_two_runs_in_one_file_are_refused(pairs, tmp_path):
    """Not the last one's verdicts taken."""
    pair = pair_of(pairs.items[0], pairs.items[0].games[0])
    twice = write_rows(tmp_path / "twice.jsonl", [judged_row(pair), judged_row(pair)])
    with pytest.raises(RrmError, match=r"row 2: '0' was judged in an earlier row as well"):
        read_verdict_file(pairs.benchmark, pairs.items, twice)
    row = {"pair_id": "a", "judgments": [{"decision": "A>B"}]}
    with pytest.raises(RrmError, match="the pair 'a' appears twice"):
        read_verdict_file(benchmark_of("judgebench"), pairs.items, write_rows(tmp_path / "j.jsonl", [row, row]))
    row = {"idx": 0, "gpt_result": "1"}
    with pytest.raises(RrmError, match="the idx 0 appears twice"):
        read_verdict_file(benchmark_of("pandalm"), pairs.items, write_rows(tmp_path / "p.jsonl", [row, row]))


def test_of_all_right_a_weighted_mean_is_no_surer_than_its_parts(tmp_path):
    """RM-Bench's: Wilson's of n prompts for each of the 9 games of the same prompts; domains in quadrature."""
    rows = [row | {"id": str(at), "domain": "chat" if at < 4 else "math"} for at, row in enumerate(rm_bench_rows())]
    loaded = load("rm-bench", write_rows(tmp_path / "total_dataset.json", rows))
    said = {item.id: given(*[1] * 9) for item in loaded.items}
    named = by_name(score(loaded.benchmark, loaded.items, said, samples=20))
    widths = [1 - wilson_interval(1.0, n).low for n in (4, 2)]
    assert [1 - named[name].low for name in ("Chat", "Math")] == pytest.approx(widths)
    assert 1 - named["All games alike"].low == pytest.approx(1 - wilson_interval(1.0, 6).low)
    overall = next(one for name, one in named.items() if name.startswith("Overall"))
    assert 1 - overall.low == pytest.approx(math.hypot(*widths) / 2)
    assert overall.high == 1


def test_what_is_left_out_is_not_among_a_means_items(tmp_path):
    rows = [row | {"id": str(at), "domain": "chat"} for at, row in enumerate(rm_bench_rows())]
    loaded = load("rm-bench", write_rows(tmp_path / "total_dataset.json", rows))
    said = {item.id: given(*[None if at < 2 else 1] * 9) for at, item in enumerate(loaded.items)}
    out = Policy(invalid="exclude")
    named = by_name(score(loaded.benchmark, loaded.items, said, out, samples=20))
    assert {one.items for one in named.values()} == {4}
    right = {item.id: given(*[1] * 9) for item in loaded.items}
    assert {one.items for one in compare(loaded.benchmark, loaded.items, said, right, out)} == {4}


def test_what_is_left_out_makes_nothing_surer(pairs):
    """5 of 5 by Wilson: 5 / (5 + 1.96²) = 56.6 % (Brown, Cai and DasGupta 2001), whatever else was invalid."""
    said = {str(at): given(1 + at % 2) for at in range(5)} | {str(at): given(None) for at in range(5, 40)}
    found = accuracy(pairs, said, samples=100, invalid="exclude")
    assert (found.value, found.items, found.counts["invalid"]) == (1, 5, 35)
    assert found.low == pytest.approx(0.5655, abs=1e-4)


def test_a_file_of_rrm_judge_says_by_its_votes_whether_both_orders_were_asked(pairs, tmp_path):
    def rows(*orders: str) -> list[dict]:
        how = {"tokens": 3, "finish_reason": "stop", "truncated_input": False}
        return [
            {"id": item.id, "content": content_digest(Pair(item.id, item.query, *item.responses)),
             "votes": [{"order": order, "verdict": 1, **how} for order in orders]}
            for item in pairs.items
        ]  # fmt: skip

    asked = write_rows(tmp_path / "both.jsonl", rows("12", "21"))
    (said,) = read_verdict_file(pairs.benchmark, pairs.items, asked).values()
    found = score(pairs.benchmark, pairs.items, said, Policy(order="both"), samples=0)[0]
    assert (found.value, found.counts["both_orders"], found.counts["consistent"]) == (0.5, 40, 40)
    mixed = write_rows(tmp_path / "mixed.jsonl", rows("12", "21")[:-1] + rows("21", "12")[-1:])
    (said,) = read_verdict_file(pairs.benchmark, pairs.items, mixed).values()
    assert score(pairs.benchmark, pairs.items, said, Policy(), samples=0)[0].counts["both_orders"] == 0
