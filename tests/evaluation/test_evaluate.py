"""Evaluating from Python: what `rrm eval` does, without the command line."""

import contextlib
import json
import string
from pathlib import Path

import pytest

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import BENCHMARKS, Loaded, judge_items, load
from rrm_jax.evaluation.eval_job import Job, Picking, most_comparisons, order_of, policy_of
from rrm_jax.evaluation.evaluate import judge_benchmark, score_file
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.template import load_template
from rrm_jax.sampling.protocol import Decoding, Request
from tests.judging.fake_generator import FakeGenerator, prefers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_word_tokenizer(directory, string.printable)
    return Tokenizer.load(directory)


@pytest.fixture
def generator(tokenizer: Tokenizer) -> FakeGenerator:
    return FakeGenerator(tokenizer, prefers("good"), 3)


def judge_of(generator: FakeGenerator, loaded: Loaded, **changes) -> Judge:
    order = order_of(loaded.benchmark)
    template, decoding = load_template("default"), Decoding(0.6, max_new_tokens=64)
    return Judge(generator, generator.tokenizer, template, decoding, order=order, max_prompt_tokens=8000, **changes)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Loaded:
    """The better response says so, but for every fifth pair, where the other one does."""
    rows = [
        {
            "id": str(at), "query": f"q{at}", "label": 1 + at % 2,
            "response_1": "good" if (at % 2 == 0) != (at % 5 == 0) else "bad",
            "response_2": "bad" if (at % 2 == 0) != (at % 5 == 0) else "good",
        }
        for at in range(20)
    ]  # fmt: skip
    return load("pairs", write(tmp_path / "pairs.jsonl", rows))


@pytest.fixture
def candidates(tmp_path: Path) -> Loaded:
    rows = [
        {
            "id": str(at), "query": f"q {at}", "responses": ["good" if c == at % 4 else f"bad {c}" for c in range(4)],
            "correct": [c == at % 4 for c in range(4)],
        }
        for at in range(8)
    ]  # fmt: skip
    return load("best-of-n", write(tmp_path / "candidates.jsonl", rows))


def test_a_benchmark_is_judged_and_its_file_scores_alike(pairs, generator, tmp_path):
    job = Job(pairs, policy_of(pairs.benchmark), tmp_path / "out", resamples=100)
    calls, during = [], []

    @contextlib.contextmanager
    def while_judging():
        during.append(len(calls))
        yield
        during.append(len(calls))

    found = judge_benchmark(
        job, judge_of(generator, pairs), advance=lambda: calls.append(1), while_judging=while_judging()
    )
    (accuracy,) = found.scores["judge"]
    assert (accuracy.value, accuracy.items) == (16 / 20, 20)
    assert (during, most_comparisons(pairs)) == ([0, 20], 20)
    assert (found.votes, found.complete, found.not_judged) == ((20, 0), True, {})
    assert "20 votes drawn now" in found.text.splitlines()[0]
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found.facts))
    assert (tmp_path / "out.md").read_text(encoding="utf-8") == found.markdown
    again = score_file(Job(pairs, job.policy, resamples=100), tmp_path / "out.judged.jsonl")
    assert again.scores["judge"] == found.scores["judge"]
    assert again.votes is None


@pytest.mark.parametrize("few", [True, False])
def test_requests_that_fail_here_and_there_are_no_dead_backend(pairs, tokenizer, few):
    """What is in between is judged; where all fail from the tenth on, the rest is given up."""

    def answer(prompt: str, request: Request) -> str:
        at = next(at for at in reversed(range(20)) if f"q{at}" in prompt)
        if at in (2, 9, 10, 15) if few else at >= 10:
            raise RrmError("refused")
        return prefers("good")(prompt, request)

    judge = judge_of(FakeGenerator(tokenizer, answer, 1), pairs)
    outcome = judge_items(judge, pairs.benchmark, pairs.items)
    assert outcome.given_up is not few
    assert {*outcome.not_judged} == ({"2", "9", "10", "15"} if few else {str(at) for at in range(10, 20)})
    assert {*outcome.verdicts} | {*outcome.not_judged} == {item.id for item in pairs.items}


def test_benchmarks_that_share_a_store_share_votes(pairs, generator, tmp_path):
    store, policy = tmp_path / "votes.jsonl", policy_of(pairs.benchmark)
    first = judge_benchmark(Job(pairs, policy, tmp_path / "a"), judge_of(generator, pairs), store=store)
    second = judge_benchmark(
        Job(pairs, policy, tmp_path / "b", against=tmp_path / "a"), judge_of(generator, pairs), store=store
    )
    assert (first.votes, second.votes, len(generator.requests)) == ((20, 0), (0, 20), 20)
    assert [one.first - one.second for one in second.differences] == [0]
    assert not (tmp_path / "a.votes.jsonl").exists()


def test_nothing_of_another_job_is_replaced(pairs, generator, tmp_path):
    policy, out = policy_of(pairs.benchmark), tmp_path / "out"
    out.with_name("out.json").write_text("mine", encoding="utf-8")
    with pytest.raises(RrmError, match="is not this job's"):
        judge_benchmark(Job(pairs, policy, out), judge_of(generator, pairs))
    with pytest.raises(RrmError, match="is not this job's"):
        score_file(Job(pairs, policy, out), write(tmp_path / "said.jsonl", []))
    assert (out.with_name("out.json").read_text(encoding="utf-8"), generator.requests) == ("mine", [])
    other = tmp_path / "other"
    with pytest.raises(RrmError, match="would be written to"):
        judge_benchmark(Job(pairs, policy, other), judge_of(generator, pairs), store=tmp_path / "other.run.json")
    judge_benchmark(Job(pairs, policy, other), judge_of(generator, pairs))
    with pytest.raises(RrmError, match="votes: was 1, is now 2"):
        judge_benchmark(Job(pairs, policy, other), judge_of(generator, pairs, votes=2))


@pytest.mark.usefixtures("quick_compiles")
def test_the_best_of_many_and_its_curve(candidates, generator, tmp_path):
    picking, sizes, calls = Picking("round-robin"), (1, 2, 3, 9), []
    found = judge_benchmark(
        Job(candidates, policy_of(candidates.benchmark), tmp_path / "out", resamples=0),
        judge_of(generator, candidates),
        picking=picking,
        sizes=sizes,
        advance=lambda: calls.append(1),
    )
    assert found.scores["judge"][0].value == 1
    # The right candidate is at 0, 1, 2 and 3 in turns; nobody has nine.
    assert {size: scores[0].value for size, scores in found.curve.items()} == {1: 0.25, 2: 0.5, 3: 0.75}
    assert len(calls) == most_comparisons(candidates, picking, sizes) == 8 * (6 + 0 + 1 + 3)
    config = json.loads((tmp_path / "out.run.json").read_text(encoding="utf-8"))["config"]
    assert config["ranking"] == {"strategy": "round-robin", "rating": None, "budget": None, "stop": None}
    assert config["invalid"] == "random"


def test_ways_of_picking_that_cannot_be(candidates):
    with pytest.raises(RrmError, match="'nosuch' is not one of"):
        most_comparisons(candidates, Picking("nosuch"))
    with pytest.raises(RrmError, match="votes of a comparison"):
        most_comparisons(candidates, Picking("knockout:votes=3"))


def test_what_a_benchmark_has_no_use_for(pairs, generator, tmp_path):
    with pytest.raises(RrmError, match="of best-of-N alone"):
        judge_benchmark(
            Job(pairs, policy_of(pairs.benchmark), tmp_path / "out"), judge_of(generator, pairs), sizes=(2,)
        )
    with pytest.raises(RrmError, match="there is no --ties"):
        policy_of(BENCHMARKS["best-of-n"], ties="0")
    assert generator.requests == []


def test_orders_are_the_published_ones_unless_asked_for():
    said: list[str] = []
    assert order_of(BENCHMARKS["judgebench"], report=said.append) == "both"
    assert order_of(BENCHMARKS["judgebench"], "given", said.append) == "given"
    assert said == []
    assert order_of(BENCHMARKS["rewardbench"], "given", said.append) == "given"
    assert said == ["rewardbench has the better response first in every row: --order given always shows it there"]
    assert policy_of(BENCHMARKS["judgebench"], seed=3).invalid == BENCHMARKS["judgebench"].policy.invalid
    changed = policy_of(BENCHMARKS["judgebench"], invalid="tie", order="given", seed=3)
    assert (changed.invalid, changed.ties, changed.order, changed.seed) == ("tie", "0", "given", 3)
