import itertools
import json
import math

import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.studies.config import WORDS
from rrm_jax.studies.diversity import cluster, diversity, mean_distance, vectors
from rrm_jax.studies.patterns import compute, drawn, pattern_of
from rrm_jax.studies.run import run_study, study_config
from rrm_jax.studies.trace_files import Trace, read_traces
from tests.judging.fake_generator import prefers
from tests.studies.conftest import FakeJudges, good_pairs, write_rows


def test_words_are_matched_whole_in_any_case_and_once():
    pattern = pattern_of(["wait", "on the  other hand", "hand", "re-read"])
    text = "Wait! Waiting is not it; awaits neither. On the\nother hand, RE-READ it: my hand_made c(wait)"
    assert [" ".join(found.lower().split()) for found in pattern.findall(text)] == [
        "wait", "on the other hand", "re-read", "wait",
    ]  # fmt: skip
    assert pattern_of(["next,"]).findall("next, nextly, and next") == ["next,"]


def test_rates_by_hand():
    traces = [
        Trace("a", "Wait, wait. Both responses are better than mine", 9),
        Trace("b", "step by step: finally done", 6),
        Trace("c", "nothing of it", 3),
    ]
    found = {one.category: one for one in compute("s", traces, WORDS).categories}
    assert {name: one.matches for name, one in found.items()} == {
        "transition": 2, "reflection": 0, "comparison": 2, "breakdown": 2,
    }  # fmt: skip
    assert found["transition"].share.estimate == pytest.approx(1 / 3)
    assert found["transition"].rate == pytest.approx(1000 * 2 / (8 + 5 + 3))
    assert found["reflection"].share.high == pytest.approx(3.8414588 / (3 + 3.8414588))  # Wilson's, of 0 of 3


def test_distances_by_hand_and_by_pairs():
    texts = ["a b", "a b", "c d", "a c"]
    units = vectors(texts, 1)
    assert mean_distance(units[:2]) == pytest.approx(0, abs=1e-6)
    assert mean_distance(units[[0, 2]]) == pytest.approx(1)
    assert mean_distance(units[[0, 3]]) == pytest.approx(0.5)  # one word of two
    by_pairs = np.mean([1 - units[i] @ units[j] for i, j in itertools.combinations(range(4), 2)])
    assert mean_distance(units) == pytest.approx(by_pairs, abs=1e-6)
    assert math.isnan(mean_distance(units[:1]))
    assert mean_distance(vectors(["a b c", "c b a"], 2)) == pytest.approx(1)  # the order of words counts
    assert mean_distance(vectors(["abc", "abd"], 2, "character")) == pytest.approx(0.5)


def test_clusters_by_the_rule():
    units = vectors(["a b", "c d", "a b", "a c", "c d e f"], 1)
    assert cluster(units, 0.3) == [0, 1, 0, 2, 1]  # "c d" to "c d e f": 1 - 2 / √8 = 0.293
    assert cluster(units, 0.5) == [0, 1, 0, 0, 1]
    assert cluster(units, 0.0) == [0, 1, 0, 2, 3]


def test_diversity_about_the_same_question():
    found = diversity(["a b", "a b", "c d", "e f"], ["p", "p", "q", "q"], 1, 0.3)
    assert found.within == pytest.approx(0.5)
    assert (found.questions, found.clusters, found.largest) == (2, 3, 2)
    assert found.distance == pytest.approx(5 / 6)
    empty = diversity([], [], 1, 0.3)
    assert (empty.clusters, empty.largest) == (0, 0)


def test_those_drawn_are_of_whole_questions_whatever_the_order():
    traces = [Trace(str(at % 20), f"t{at}", 1) for at in range(60)]
    some = drawn(traces, 9, seed=1)
    assert len({trace.question for trace in some}) == 3
    assert {trace.text for trace in some} == {trace.text for trace in drawn(traces[::-1], 9, seed=1)}
    assert some != drawn(traces, 9, seed=2)


def test_traces_of_every_kind_of_file(letters, tmp_path):
    judged = write_rows(tmp_path / "judged.jsonl", [
        {"id": "1", "votes": [{"text": " so</think>\\boxed{Assistant 1}", "tokens": 3}, {"text": "cut", "tokens": 1}]},
        {"id": "2", "votes": [{"tokens": 3}]},
    ])  # fmt: skip
    told: list[str] = []
    found, skipped = read_traces(judged, told.append)
    assert found == [Trace("1", "so", 3), Trace("1", "cut", 1)]
    assert skipped == 1
    assert "judged.jsonl:2: not a judged row" in told[0]
    run = write_rows(tmp_path / "traces.jsonl", [{"step": 1, "id": "9", "completion": "hm</think>x", "tokens": 5}])
    assert read_traces(run, told.append) == ([Trace("9", "hm", 5)], 0)
    with pytest.raises(RrmError, match="no verdict store"):
        read_traces(run, told.append, {"thinking": True})
    with pytest.raises(RrmError, match="neither a judged row"):
        read_traces(write_rows(tmp_path / "other.jsonl", [{"a": 1}]), told.append)


def test_a_study_of_a_verdict_store(letters, tmp_path):
    from rrm_jax.data.records import parse_pair
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.studies.config import JudgeConfig

    judges = FakeJudges(
        letters, {"a": prefers("good"), "b": lambda prompt, request: "wait</think>\\boxed{Assistant 1}"}
    )
    store = tmp_path / "votes.jsonl"
    with VoteLog(store) as log:
        for name in "ab":
            judge = judges.open(JudgeConfig(model=name), seed=0, votes=2, order="given", thinking_budget=None)
            assert len(list(judge.judge(map(parse_pair, good_pairs(3)), log))) == 3
    config = tmp_path / "c.yaml"
    config.write_text(
        f"output: {tmp_path / 'out'}\nresamples: 100\ntraces:\n  both: {{path: {store}}}\n"
        f"  b: {{path: {store}, settings: {{model: b}}}}\n"
    )
    text, *_ = run_study("patterns", study_config("patterns", str(config)), judges.open)
    both, b = json.loads((tmp_path / "out" / "data.json").read_text())["found"]["sources"]
    assert (both["traces"], b["traces"]) == (12, 6)
    assert both["categories"][0]["share"]["estimate"] == 0.5
    assert b["categories"][0]["rate"] == 1000
    assert (both["diversity"]["questions"], both["diversity"]["clusters"], b["diversity"]["clusters"]) == (3, 2, 1)
    assert "ours, not the paper's" in text
    assert json.loads((tmp_path / "out" / "run.json").read_text())["inputs"].keys() == {"traces.both", "traces.b"}
    with pytest.raises(RrmError, match="must list words"):
        study_config("patterns", str(config), ["words={empty: []}"])
