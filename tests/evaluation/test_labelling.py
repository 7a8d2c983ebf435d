"""Which label votes give, what is left out, and what the report says of the judge, by hand and by LLMBar's judges."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Pair
from rrm_jax.evaluation.labelling import Rule, Task, task_of_candidates, task_of_pair
from rrm_jax.evaluation.labelling_report import Labels, Position, wilson
from rrm_jax.judging.judge import Judgment, Vote


def judgment(votes: str, pair: Pair | None = None, probabilities: tuple[float | None, ...] = ()) -> Judgment:
    """`votes` "1- 22": in turn in the order given and in the other, named in the pair's own order; - is invalid."""
    cast = [
        Vote("21" if at % 2 else "12", {"1": 1, "2": 2, "-": None}[vote], "", 1, "stop", False)
        for at, vote in enumerate(votes.replace(" ", ""))
    ]
    if probabilities:
        cast = [Vote(**(vars(vote) | {"probability": p})) for vote, p in zip(cast, probabilities, strict=True)]
    return Judgment(pair or Pair("1", "q", "a", "b"), tuple(cast))


@pytest.mark.parametrize(
    ("votes", "drop", "majority"),
    [
        ("11", (1, ""), (1, "")),
        ("22", (2, ""), (2, "")),
        ("12", (None, "disagree"), (None, "tie")),
        ("1-", (None, "invalid"), (1, "")),
        ("--", (None, "invalid"), (None, "invalid")),
        ("11 11 12", (1, ""), (1, "")),  # given order 1 1 1, other order 1 1 2
        ("12 12 11", (None, "disagree"), (1, "")),  # 1 1 1 against 2 2 1
        ("12 22", (None, "tie"), (2, "")),  # 1 2 against 2 2
        ("-2 12 22", (None, "tie"), (2, "")),
        ("1- 1- 11", (1, ""), (1, "")),
        ("1- 1- 1-", (None, "invalid"), (1, "")),
    ],
)
def test_labels(votes, drop, majority):
    assert Rule().decide(judgment(votes)) == drop
    assert Rule("majority").decide(judgment(votes)) == majority


def test_the_least_agreement_counts_all_votes():
    votes = judgment("11 11 1-")  # 5 of 6
    assert Rule(min_agreement=5 / 6).decide(votes) == (1, "")
    assert Rule(min_agreement=0.84).decide(votes) == (None, "weak")
    assert Rule("majority", 1.0).decide(judgment("22")) == (2, "")


def test_soft_labels_follow_the_mean_probability():
    assert Rule("soft").decide(judgment("12", probabilities=(0.9, 0.4))) == (1, "")
    assert Rule("soft").decide(judgment("12", probabilities=(0.6, 0.1))) == (2, "")
    assert Rule("soft").decide(judgment("1-", probabilities=(0.75, 0.25))) == (None, "tie")
    assert Rule("soft").decide(judgment("12")) == (None, "invalid")
    assert Rule("soft", 0.7).decide(judgment("12", probabilities=(0.9, 0.4))) == (None, "weak")


@given(st.text("12-", min_size=1, max_size=9), st.sampled_from(["drop", "majority"]))
def test_turning_a_pair_turns_its_label(half, disagreement):
    """Property: the label belongs to the response, not to its place."""
    votes = half + half[::-1]
    turned = "".join({"1": "2", "2": "1", "-": "-"}[votes[at ^ 1]] for at in range(len(votes)))
    label, reason = Rule(disagreement).decide(judgment(votes))
    assert Rule(disagreement).decide(judgment(turned)) == (None if label is None else 3 - label, reason)


def test_tasks_of_pairs():
    row = {
        "id": 7,
        "query": "q",
        "response_1": "x</think>a",
        "response_2": "b",
        "label": None,
        "own": [1.5],
        "source": "s",
    }
    task = task_of_pair(row | {"labelling": {"reason": "tie"}})
    assert (task.id, task.pair, task.reason) == ("7", Pair("7", "q", "x</think>a", "b", None, "s"), "")
    assert task.row == {
        "id": 7,
        "query": "q",
        "response_1": "x</think>a",
        "response_2": "b",
        "own": [1.5],
        "source": "s",
    }
    assert task_of_pair(row | {"response_2": " a\n"}).reason == "identical"  # once its thinking is removed
    assert task_of_pair(row | {"response_1": "a</think>"}).reason == "empty"
    assert task_of_pair(row | {"query": "\n"}).reason == "empty"
    with pytest.raises(RowError, match="must be 1, 2 or null"):
        task_of_pair(row | {"label": 3})


def test_tasks_of_candidates():
    row = {"id": "c", "query": "q", "responses": ["cut off", "t</think>a", "t</think>b", "u</think>a"], "own": 1}
    row |= {"source": "s", "answers": ["1", "2", "3", "2"]}
    first = task_of_candidates("first", 0, False)(row)
    assert first.row == {
        "id": "c", "query": "q", "own": 1, "source": "s", "response_1": "cut off", "response_2": "a", "picked": [0, 1],
    }  # fmt: skip
    assert first.pair == Pair("c", "q", "cut off", "a", None, "s")
    assert task_of_candidates("first", 0, True)(row).row["picked"] == [1, 2]
    assert task_of_candidates("first", 0, True)(row | {"responses": ["cut off"] * 3 + ["</think>b"]}).reason == "few"
    drawn = [task_of_candidates("random", seed, True)(row | {"id": name}) for seed in range(2) for name in "abcdefgh"]
    picked = [tuple(task.row["picked"]) for task in drawn]
    assert len(set(picked)) == 6  # all ordered pairs of three, none with the response that was cut off
    assert drawn[3] == task_of_candidates("random", 0, True)(row | {"id": "d"})
    assert {task.reason for task in drawn} == {"", "identical"}


def test_what_is_written_of_a_task():
    labels = Labels(Rule())
    pairs = [Pair("k", "q", "a", "b", None), Pair("d", "q", "a", "b", 2)]
    labels.add(judgment("22", pairs[0], (0.25, 0.5)))
    labels.add(judgment("1-", pairs[1]))
    labels.leave_out(Task("e", {"id": "e"}, None, "few"))
    about = {"votes_1": 0, "votes_2": 2, "invalid": 0, "probability": 0.375}
    assert labels.row(Task("k", {"id": "k"}, pairs[0])) == ({"id": "k", "label": 2, "labelling": about}, True)
    about = {"reason": "invalid", "votes_1": 1, "votes_2": 0, "invalid": 1, "given": 2}
    assert labels.row(Task("d", {"id": "d"}, pairs[1])) == ({"id": "d", "label": 2, "labelling": about}, False)
    assert labels.row(Task("e", {"id": "e"}, None, "few")) == ({"id": "e", "labelling": {"reason": "few"}}, False)


def test_the_position_bias_and_its_interval():
    """Agresti and Min's interval by hand: 10 pairs, 4 for the first twice, 1 for the second twice.

    (4.5 − 1.5) / 12 = 0.25, and 1.96 · sqrt(4.5 + 1.5 − 3² / 12) / 12 = 0.3742; halved, about a half.
    """
    position = Position()
    for votes in ["12"] * 4 + ["21"] + ["11"] * 3 + ["22"] * 2 + ["1-", "--"]:
        position.add(judgment(votes).votes)
    assert position.share() == pytest.approx((0.65, 0.5 + (0.25 - 0.3742) / 2, 0.5 + (0.25 + 0.3742) / 2), abs=1e-4)
    assert "won 65.0 % in 10 pairs" in position.lines()[0]
    assert "both 4 times, the second 1 times" in position.lines()[0]
    always = Position()
    for _ in range(1000):
        always.add(judgment("12 12").votes)
    assert always.share() == pytest.approx((1, 0.997, 1), abs=2e-3)


def test_wilsons_interval():
    """Brown, Cai and DasGupta's formula at 8 of 10, as statsmodels' proportion_confint(8, 10, method="wilson")."""
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-4)


def test_labels_of_real_judges_agree_as_published(real_data: Path):
    """LLMBar's judges: every verdict in both orders, and the published share that is right in both.

    Right in both is a label that is kept and right, so (kept and right) / all must be `correct_both`.
    """
    folder = real_data / "llmbar"
    winners = json.loads((folder / "judge_winners_slim.json").read_text(encoding="utf-8"))
    published = json.loads((folder / "published_evaluator_statistics.json").read_text(encoding="utf-8"))
    checked = 0
    for name in winners:
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for judge, votes in winners[name].items():
            labels = [
                Rule().decide(judgment(f"{one}{two}".replace("None", "-")))
                for one, two in zip(votes["winner_original"], votes["winner_swapped"], strict=True)
            ]
            right = sum(label == row["label"] for (label, _), row in zip(labels, rows, strict=True))
            assert f"{right} / {len(rows)} " in published[name][judge]["correct_both"], (name, judge)
            checked += 1
    assert checked > 50
