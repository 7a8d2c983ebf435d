"""Arena-Hard: published layouts, win rates by hand, and the rate at equal length against known coefficients."""

import numpy as np
import pytest
from scipy.optimize import minimize

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import Ballot, benchmark_of, load, score
from rrm_jax.evaluation.benchmarks.arena_hard import CONTROLLED, WIN_RATE, fill
from rrm_jax.evaluation.benchmarks.base import Policy
from rrm_jax.evaluation.eval_job import policy_of
from rrm_jax.evaluation.length_control import RIDGE, equal_length_rate, fit, sigmoid
from tests.evaluation.benchmark_rows import by_name, write_rows


def ballots(first: str, second: str):
    """Votes in the given order and in the other: + for the model, - against it, = a tie, ? invalid."""
    names = {"+": 1, "-": 2, "=": 0, "?": None}
    return (
        tuple(
            Ballot(order, names[vote], twin=True)  # type: ignore[arg-type]
            for pair in zip(first, second, strict=True)
            for order, vote in zip(("12", "21"), pair, strict=True)
        ),
    )


@pytest.fixture
def items(tmp_path):
    rows = [
        {
            "uid": f"u{at}",
            "category": ["hard_prompt", "creative_writing"][at % 2],
            "subcategory": "",
            "prompt": f"p {at}",
        }
        for at in range(5)
    ]
    loaded = load("arena-hard", write_rows(tmp_path / "question.jsonl", rows))
    answers = [
        {"id": f"u{at}", "query": f"p {at}", "responses": [f"<think>\nhm</think>{'x' * at}", "y"]} for at in range(5)
    ]
    baseline = [
        {
            "uid": f"u{at}",
            "model": "m",
            "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": said}],
        }
        for at, said in enumerate([{"answer": "bb"}, "bb", {"answer": "<think>a</think>\nbb"}, "bb"])
    ]  # u4 has none
    said: list[str] = []
    paths = [write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in [("a", answers), ("b", baseline)]]
    made = list(fill(loaded.items, paths[0], paths[1], said.append))
    assert [item.responses for item in made] == [("x" * at, "bb") for at in range(4)]
    assert said == [f"{paths[1]}: no answer to 'u4'"]
    return loaded.benchmark, made


def test_win_rates_by_hand(items):
    benchmark, made = items
    said = {
        "u0": ballots("+", "+"),  # 1
        "u1": ballots("+", "-"),  # ½
        "u2": ballots("--", "+="),  # (0 + ¾) / 2
        "u3": ballots("+", "?"),  # not counted: no verdict in one order
    }
    named = by_name(score(benchmark, made, said, samples=100))
    assert named[WIN_RATE].value == pytest.approx((1 + 1 / 2 + 3 / 8) / 3)
    assert named["hard_prompt"].value == pytest.approx((1 + 3 / 8) / 2)
    assert named["creative_writing"].value == 0.5
    counts = named[WIN_RATE].counts
    assert (counts["votes"], counts["invalid"], counts["both_orders"], counts["consistent"]) == (10, 1, 5, 1)
    half = Policy(invalid="0.5", ties="0.5")
    assert by_name(score(benchmark, made, said, half, samples=0))[WIN_RATE].value == pytest.approx(
        (1 + 1 / 2 + 3 / 8 + 3 / 4) / 4
    )
    assert 0 < named[CONTROLLED].low <= named[CONTROLLED].value <= named[CONTROLLED].high < 1


def test_there_is_no_rule_for_ties(items):
    with pytest.raises(RrmError, match="arena-hard has no --ties"):
        policy_of(benchmark_of("arena-hard"), ties="0")


def test_first_version(tmp_path):
    rows = [{"question_id": "q1", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": "p"}]}]
    rows += [rows[0] | {"question_id": "q2", "turns": [{"content": "p"}, {"content": "and?"}]}]
    loaded = load("arena-hard", write_rows(tmp_path / "question.jsonl", rows))
    assert ([item.id for item in loaded.items], loaded.skipped) == (["q1"], 1)
    answer = {
        "question_id": "q1",
        "model_id": "m",
        "choices": [{"index": 0, "turns": [{"content": "a", "token_len": 1}]}],
    }
    file = write_rows(tmp_path / "a.jsonl", [answer])
    (item,) = fill(loaded.items, file, file, lambda message: None)
    assert item.responses == ("a", "a")
    other = write_rows(tmp_path / "b.jsonl", [{"id": "q1", "query": "another", "responses": ["a"]}])
    with pytest.raises(RrmError, match="the query of 'q1' is not the benchmark's prompt"):
        list(fill(loaded.items, file, other, lambda message: None))
    said: list[str] = []
    broken = write_rows(tmp_path / "c.jsonl", [{"id": "q1", "query": "p", "responses": ["<think>\nhm"]}, answer])
    (item,) = fill(loaded.items, file, broken, said.append)
    assert "cut off in its thinking" in said[0]


def test_known_coefficients_are_found():
    """Scores that are the model's own probabilities, so that the likelihood is largest exactly there (float64)."""
    rng = np.random.default_rng(0)
    lengths = rng.normal(80, 300, 400)
    x = np.tanh(lengths / lengths.std(ddof=1))
    for theta, phi in [(0.0, 0.0), (-0.7, 1.5), (1.2, -0.4)]:
        scores = sigmoid(theta + phi * x)
        (found,) = fit(scores, lengths, np.ones((1, 400)))
        assert found == pytest.approx([theta, phi], abs=1e-5)  # the ridge moves it by about RIDGE / 100
        (rate,) = equal_length_rate(scores, lengths)
        assert rate == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-6)


def test_longer_answers_that_win_for_their_length(tmp_path):
    """Wins and losses drawn with θ = 0: the model wins most, as it writes more, and half at equal length."""
    rng = np.random.default_rng(1)
    lengths = rng.normal(500, 400, 4000)
    wins = (rng.random(4000) < sigmoid(2 * np.tanh(lengths / lengths.std(ddof=1)))).astype(float)
    assert wins.mean() > 0.75
    (rate,) = equal_length_rate(wins, lengths)
    assert rate == pytest.approx(0.5, abs=0.05)


def test_against_scipy_with_weights():
    """Another optimiser on the same likelihood, for samples in which items come more than once (rtol 1e-5)."""
    rng = np.random.default_rng(2)
    scores, lengths = rng.choice([0.0, 0.5, 1.0], 60), rng.normal(0, 50, 60)
    times = rng.multinomial(60, [1 / 60] * 60, size=5).astype(float)
    x = np.tanh(lengths / lengths.std(ddof=1))
    for weights, found in zip(times, fit(scores, lengths, times), strict=True):

        def loss(at, weights=weights):
            logits = at[0] + at[1] * x
            return np.sum(weights * (np.logaddexp(0, logits) - scores * logits)) + RIDGE / 2 * np.sum(at**2)

        assert found == pytest.approx(minimize(loss, [0.0, 0.0], tol=1e-12).x, rel=1e-4, abs=1e-5)


def test_degenerate_data():
    """All won, all of one length, one item, wins that the length alone tells: finite, and near what they must be."""
    lengths = np.array([-3.0, 1.0, 5.0, 2.0])
    assert equal_length_rate(np.ones(4), lengths)[0] == pytest.approx(1, abs=1e-3)
    assert equal_length_rate(np.zeros(4), lengths)[0] == pytest.approx(0, abs=1e-3)
    assert equal_length_rate(np.array([1.0, 1, 1, 0]), np.full(4, 7.0))[0] == pytest.approx(0.75, abs=1e-4)
    assert equal_length_rate(np.array([0.5]), np.array([3.0]))[0] == pytest.approx(0.5)
    separated = equal_length_rate(np.array([0.0, 1, 0, 1]), np.array([-9.0, 9, -8, 8]))
    assert separated[0] == pytest.approx(0.5, abs=1e-6)
    assert np.isfinite(equal_length_rate(np.array([0.0, 1, 1, 1]), lengths, np.eye(4) * 4)).all()
