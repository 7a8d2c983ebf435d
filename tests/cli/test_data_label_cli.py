"""`rrm data label` from the outside: labels and reasons row by row; kills, outages, other jobs' files, bad input."""

import dataclasses
import json
import re
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import parse_labelled_pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from tests.judging.fake_generator import FakeGenerator, Killed, coin, prefers
from tests.sampling.stub_server import stub_servers, vllm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of one token a character."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = write_word_tokenizer(directory, string.printable)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary, max_positions=8192))
    return directory


serve = pytest.fixture(stub_servers, name="serve")


def row(at: int, **changed) -> dict:
    """The good response is the second one of odd rows."""
    good, bad = f"good {at}", f"bad {at}"
    first, second = (good, bad) if at % 2 == 0 else (bad, good)
    made = {"id": f"é{at}", "query": f"question {at}", "response_1": first, "response_2": second}
    return made | {"source": "ab"[at % 2], "own": [1.5, None]} | changed


def write(path: Path, rows: list) -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in rows]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(directory: Path, name: str = "out.jsonl") -> tuple[bytes, bytes]:
    return (directory / name).read_bytes(), (directory / f"{name}.dropped.jsonl").read_bytes()


def first_shown(prompt: str, request) -> str:
    return "</think>\\boxed{Assistant 1}"


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    """Runs `rrm data label` with a fake model on pairs.jsonl → (result, generator)."""
    write(tmp_path / "pairs.jsonl", [row(at) for at in range(8)])

    def run(answer, *options, out: Path = tmp_path / "out.jsonl", rows=(), dies_after=None, kind=FakeGenerator):
        generator = kind(Tokenizer.load(model), answer, 3, dies_after)
        monkeypatch.setattr(loading, "open_model", lambda *args: generator)
        rows = rows or ("--pairs", tmp_path / "pairs.jsonl")
        arguments = ["data", "label", "--model", model, *rows, "--out", out, "--max-new-tokens", 64]
        result = CliRunner().invoke(_app, [str(word) for word in (*arguments, *options)])
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit, Killed)):
            raise result.exception
        return result, generator

    return run


def test_pairs_get_the_label_of_both_orders(label, tmp_path: Path):
    result, generator = label(prefers("good"))
    assert result.exit_code == 0, result.output
    votes = [{"votes_1": 2, "votes_2": 0, "invalid": 0}, {"votes_1": 0, "votes_2": 2, "invalid": 0}]
    expected = [row(at) | {"label": 1 + at % 2, "labelling": votes[at % 2]} for at in range(8)]
    assert read(tmp_path / "out.jsonl") == expected
    assert read(tmp_path / "out.jsonl.dropped.jsonl") == []
    assert len([pair for _, pair in Reader(tmp_path / "out.jsonl", parse_labelled_pair)]) == 8
    assert len(generator.requests) == 16
    for line in [
        "votes: 16 (invalid: 0, cut off at the token limit: 0",
        "order consistency: 1.0000 = 8 / 8 votes",
        "labelled: 8 (100.0 %) of 8 rows, response_1 the better in 4, response_2 in 4",
        "won 50.0 % in 8 pairs with valid votes in both orders",
        "| `a`    |    4 |        4 | 100.0 % |",
        "16 votes drawn now, 0 found",
    ]:
        assert line in result.stdout
    facts = json.loads((tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert (facts["config"]["order"], facts["config"]["disagreement"]) == ("both", "drop")


def test_a_judge_with_a_position_bias_labels_nothing(label, tmp_path: Path):
    result, _ = label(first_shown)
    assert result.exit_code == 0
    assert read(tmp_path / "out.jsonl") == []
    dropped = read(tmp_path / "out.jsonl.dropped.jsonl")
    assert [(at["id"], at["labelling"]["reason"]) for at in dropped] == [(f"é{at}", "disagree") for at in range(8)]
    assert not any("label" in at for at in dropped)
    assert "dropped, disagree: 8 (the orders name different responses)" in result.stdout
    assert "the one shown first won 100.0 % in 8 pairs" in result.stdout
    assert "the first won in both 8 times, the second 0 times" in result.stdout


def test_reasons_are_told_apart_and_counted(label, tmp_path: Path):
    def answer(prompt, request):
        at = int(re.search(r"question (\d)", prompt).group(1))
        return {0: prefers("good"), 1: first_shown, 2: lambda *_: "hm…"}.get(at, prefers("bad"))(prompt, request)

    rows = [row(0), row(1), "[]", row(2), row(3, response_2="bad 3"), row(4, query=" "), row(0), row(5)]
    write(tmp_path / "pairs.jsonl", rows)
    result, generator = label(answer)
    assert result.exit_code == 1
    assert [(at["id"], at["label"]) for at in read(tmp_path / "out.jsonl")] == [("é0", 1), ("é5", 1)]
    dropped = read(tmp_path / "out.jsonl.dropped.jsonl")
    assert [at["labelling"]["reason"] for at in dropped] == [
        "disagree", "malformed", "invalid", "identical", "empty", "malformed",
    ]  # fmt: skip
    assert {name: value for name, value in dropped[3].items() if name != "labelling"} == row(3, response_2="bad 3")
    assert re.search(r"pairs.jsonl:3: expected a JSON object", dropped[1]["labelling"]["why"])
    assert "2 malformed row(s)" in result.stderr
    assert len(generator.requests) == 8
    assert "labelled: 2 (25.0 %) of 8 rows" in result.stdout
    for reason, count in [("disagree", 1), ("invalid", 1), ("identical", 1), ("empty", 1), ("malformed", 2)]:
        assert f"dropped, {reason}: {count} (" in result.stdout
    table = ["".join(line.split()) for line in result.stdout.splitlines() if line.startswith("|")]
    assert table[0] == "|source|rows|labelled|share|invalid|disagree|identical|empty|"
    assert table[2:] == ["|`a`|3|1|33.3%|1|0|0|1|", "|`b`|3|1|33.3%|0|1|1|0|"]  # rows 0 2 4, and 1 3 5


def test_disagreement_kept_asks_nothing_again(label, tmp_path: Path):
    def two_to_one(prompt, request):
        return (first_shown if request.sample == 0 else prefers("good"))(prompt, request)

    result, _ = label(two_to_one, "--votes", "2")
    assert "dropped, tie: 8" in result.stdout  # one of the orders has a vote for each
    again = ("--votes", "2", "--verdicts", tmp_path / "out.jsonl.votes.jsonl", "--disagreement", "majority")
    result, generator = label(two_to_one, *again, out=tmp_path / "most.jsonl")
    assert (result.exit_code, generator.requests) == (0, [])
    assert [at["label"] for at in read(tmp_path / "most.jsonl")] == [1, 2] * 4
    assert read(tmp_path / "most.jsonl")[0]["labelling"] == {"votes_1": 3, "votes_2": 1, "invalid": 0}
    result, generator = label(two_to_one, *again, "--min-agreement", "0.8", out=tmp_path / "weak.jsonl")
    assert "dropped, weak: 8" in result.stdout
    assert generator.requests == []


def test_soft_labels(label, tmp_path: Path):
    class Leaning(FakeGenerator):
        def complete(self, request):
            good = "good" in self.tokenizer.decode(request.prompt_ids).split("### Assistant 1")[1].split("###")[0]
            sure = (0.875, 0.125) if good else (0.625, 0.375)
            return dataclasses.replace(super().complete(request), choice_probabilities=sure)

    soft = ("--constrain-verdict", "--disagreement", "soft")
    result, _ = label(first_shown, *soft, kind=Leaning)
    assert result.exit_code == 0, result.output
    assert [(at["label"], at["labelling"]["probability"]) for at in read(tmp_path / "out.jsonl")] == [
        (1, 0.625), (2, 0.375),
    ] * 4  # fmt: skip
    result, generator = label(first_shown, *soft[1:], out=tmp_path / "no.jsonl")
    assert "needs votes with probabilities; add --constrain-verdict" in str(result.exception)
    assert generator.requests == []


def test_killed_anywhere_it_ends_up_the_same(label, tmp_path: Path):
    settings = ("--votes", "2", "--disagreement", "majority")
    first, _ = label(coin, *settings)
    expected, report = results(tmp_path), first.stdout.splitlines()[:-1]
    assert all(expected)
    for dies_after in (0, 1, 17, 31):
        for file in tmp_path.glob("out.jsonl*"):
            file.unlink()
        result, _ = label(coin, *settings, dies_after=dies_after)
        assert isinstance(result.exception, Killed)
        assert not (tmp_path / "out.jsonl").exists()
        with open(tmp_path / "out.jsonl.votes.jsonl", "ab") as file:
            file.write(b'{"key":"3f')  # what a kill in mid-write leaves
        result, generator = label(coin, *settings)
        assert (result.exit_code, len(generator.requests)) == (0, 32 - dies_after)
        assert (results(tmp_path), result.stdout.splitlines()[:-1]) == (expected, report)
    result, generator = label(coin, *settings)
    assert generator.requests == []
    assert (results(tmp_path), result.stdout.splitlines()[:-1]) == (expected, report)


def test_an_outage_is_no_verdict(serve, model: Path, tmp_path: Path, monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    tokenizer, count = Tokenizer.load(model), iter(range(100))
    pairs = write(tmp_path / "pairs.jsonl", [row(at) for at in range(4)])

    def right(path, body):
        text = prefers("good")(tokenizer.decode(body["prompt"]), None)
        return vllm(text, [*tokenizer.encode_text(text), tokenizer.eos_id])

    def run(answer):
        server = serve(answer)
        arguments = ["data", "label", "--model", model, "--pairs", pairs, "--out", tmp_path / "out.jsonl"]
        arguments += ["--backend", server.url, "--backend-model", "m", "--concurrency", 1, "--direct"]
        arguments += ["--max-new-tokens", 64]
        return CliRunner().invoke(_app, [str(word) for word in arguments]), server

    gone = (503, {"Retry-After": "86400"}, b"maintenance")
    result, _ = run(lambda path, body: right(path, body) if next(count) < 3 else gone)
    assert isinstance(result.exception, RrmError)
    assert "out of service" in str(result.exception)
    assert not list(tmp_path.glob("*out.jsonl*dropped*")) + list(tmp_path.glob("out.jsonl"))
    kept = len((tmp_path / "out.jsonl.votes.jsonl").read_text(encoding="utf-8").splitlines()) - 1
    assert 2 <= kept <= 3
    result, server = run(right)
    assert result.exit_code == 0, result.output
    assert len(server.bodies) == 8 - kept
    assert [at["label"] for at in read(tmp_path / "out.jsonl")] == [1, 2, 1, 2]


def test_labels_that_are_there_are_refused_or_compared(label, tmp_path: Path):
    write(tmp_path / "pairs.jsonl", [row(0, label=1), row(1, label=1), row(2), row(3, label=2, response_1="good 3")])
    result, generator = label(prefers("good"))
    assert "3 of 4 pairs have a label already, id 'é0' the first; --relabel" in str(result.exception)
    assert (generator.requests, list(tmp_path.glob("out.jsonl*"))) == ([], [])
    result, _ = label(prefers("good"), "--relabel")
    assert result.exit_code == 0, result.output
    assert "agreement with the labels given: 1 (50.0 %) of 2 pairs that got one" in result.stdout
    assert "agreement in `a`: 1 (100.0 %) of 1" in result.stdout
    assert "agreement in `b`: 0 (0.0 %) of 1" in result.stdout
    labelled = read(tmp_path / "out.jsonl")
    assert [(at["label"], at["labelling"].get("given")) for at in labelled] == [(1, 1), (2, 1), (1, None)]
    (dropped,) = read(tmp_path / "out.jsonl.dropped.jsonl")
    assert (dropped["label"], dropped["labelling"]) == (2, {"reason": "identical", "given": 2})
    result, generator = label(prefers("good"), "--relabel")  # its own files are no obstacle
    assert (result.exit_code, generator.requests) == (0, [])


def test_two_responses_of_each_candidates_row(label, tmp_path: Path):
    responses = ["a very good thought", "bad?</think>bad 1", "so</think>good", "bad</think>bad 9"]
    more = {"responses": responses, "source": "s", "correct": [True, False, True, False]}
    rows = [{"id": at, "query": f"question {at}", "own": at} | more for at in range(12)]
    rows[3]["responses"] = ["</think>good"] + ["cut off"] * 3
    given = ("--candidates", write(tmp_path / "candidates.jsonl", rows))
    result, generator = label(prefers("good"), "--require-answer", rows=given)
    assert result.exit_code == 0, result.output
    labelled = read(tmp_path / "out.jsonl")
    assert labelled[1] == {
        "id": 1, "query": "question 1", "own": 1, "source": "s", "response_1": "bad 1", "response_2": "good",
        "picked": [1, 2],
        "label": 2, "labelling": {"votes_1": 0, "votes_2": 2, "invalid": 0},
    }  # fmt: skip
    (dropped,) = read(tmp_path / "out.jsonl.dropped.jsonl")
    assert dropped == rows[3] | {"labelling": {"reason": "few"}}
    assert len(generator.requests) == 22
    result, _ = label(prefers("good"), "--pick", "random", rows=given, out=tmp_path / "drawn.jsonl")
    drawn = {at["id"]: at["picked"] for at in read(tmp_path / "drawn.jsonl")}
    assert len({tuple(picked) for picked in drawn.values()}) > 3
    result, _ = label(prefers("good"), "--pick", "random", rows=given, out=tmp_path / "drawn.jsonl")
    assert {at["id"]: at["picked"] for at in read(tmp_path / "drawn.jsonl")} == drawn


def test_whole_responses_are_written_and_judged_without_their_thinking(label, tmp_path: Path):
    """What a thinking policy is trained on; the thinking names the other response the good one."""
    rows = [
        {"id": at, "query": "q", "responses": ["<think>\ngood</think>bad", "cut off", f"bad {at}</think>good"]}
        | {"finish_reasons": ["stop", "length", "stop"], "tokens": [3, 4, 5]}
        for at in range(3)
    ]
    given = ("--candidates", write(tmp_path / "candidates.jsonl", rows))
    result, generator = label(prefers("good"), "--require-answer", "--whole", rows=given)
    assert result.exit_code == 0, result.output
    votes = {"votes_1": 0, "votes_2": 2, "invalid": 0}
    assert read(tmp_path / "out.jsonl") == [
        {"id": at, "query": "q", "response_1": "<think>\ngood</think>bad", "response_2": f"bad {at}</think>good"}
        | {"picked": [0, 2], "label": 2, "labelling": votes}
        for at in range(3)
    ]
    # Pairs without the thinking are the same to the judge: every vote is found.
    store = ("--verdicts", tmp_path / "out.jsonl.votes.jsonl")
    result, again = label(prefers("good"), "--require-answer", *store, rows=given, out=tmp_path / "short.jsonl")
    assert (result.exit_code, again.requests) == (0, [])
    assert {row["response_2"] for row in read(tmp_path / "short.jsonl")} == {"good"}
    assert not any("think" in generator.tokenizer.decode(request.prompt_ids).split("### Assistant 1")[1].split("##")[0]
                   for request in generator.requests)  # fmt: skip


def test_what_another_job_wrote_is_not_overwritten(label, tmp_path: Path):
    label(prefers("good"))
    before = results(tmp_path)
    rows = [row(at) for at in range(8)]
    write(tmp_path / "edited.jsonl", [row(0, response_1="better"), *rows[1:]])
    result, generator = label(coin, rows=("--pairs", tmp_path / "edited.jsonl"))
    assert "out.jsonl holds 1 row(s) that are not in" in str(result.exception)
    for options, message in [
        (("--seed", "1"), "seed: was 0, is now 1"),
        (("--disagreement", "majority"), "disagreement: was 'drop', is now 'majority'"),
        (("--min-agreement", "1"), "min_agreement: was 0.0, is now 1.0"),
    ]:
        result, generator = label(coin, *options)
        assert message in str(result.exception)
    result, generator = label(coin, rows=("--pairs", tmp_path / "out.jsonl"))
    assert "would be written to" in str(result.exception)
    (tmp_path / "out.jsonl.run.json").unlink()
    assert "it is not this job's" in str(label(coin)[0].exception)
    assert (generator.requests, results(tmp_path)) == ([], before)


def test_a_grown_file_goes_on_with_the_votes(label, tmp_path: Path):
    write(tmp_path / "pairs.jsonl", [row(at) for at in range(4)])
    label(first_shown)
    write(tmp_path / "pairs.jsonl", [row(at) for at in range(8)])
    result, generator = label(first_shown)
    assert (result.exit_code, len(generator.requests)) == (0, 8)
    assert len(read(tmp_path / "out.jsonl.dropped.jsonl")) == 8


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (("--pairs", "x", "--candidates", "y"), (), "one of --pairs FILE and --candidates FILE"),
        (("--strict",), (), "one of --pairs FILE and --candidates FILE"),
        (("--pairs", "x"), ("--pick", "random"), "are for --candidates"),
        (("--pairs", "x"), ("--whole",), "are for --candidates"),
        (("--pairs", "nowhere.jsonl"), (), "cannot read nowhere.jsonl"),
    ],
)
def test_wrong_options(label, tmp_path: Path, rows, options, message):
    result, generator = label(coin, *options, rows=rows)
    assert message in str(result.exception)
    assert (generator.requests, list(tmp_path.glob("out.jsonl*"))) == ([], [])


def test_a_full_disk_keeps_the_votes(label, tmp_path: Path, monkeypatch):
    from rrm_jax.data import whole_files

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(whole_files.os, "replace", full)
        said = str(label(coin)[0].exception)
    assert "No space left on device; every vote is kept" in said
    assert not list(tmp_path.glob(".*partial"))
    result, generator = label(coin)
    assert (result.exit_code, generator.requests) == (0, [])
