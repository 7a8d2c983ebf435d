"""`rrm data synthesize` from the outside: kills, outages, generators added later, bad input."""

import hashlib
import json
import re
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data import verifier_pool
from rrm_jax.data.prepared import write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Pair, parse_question
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from tests.data.candidates import InProcess, read, write
from tests.judging.fake_generator import FakeGenerator, Killed
from tests.sampling.stub_server import chat, stub_servers, vllm

serve = pytest.fixture(stub_servers, name="serve")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models, `small` and `large`, with a tokenizer of one token a character."""
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["small", "large"]):
        vocabulary = write_word_tokenizer(directory / name, string.printable)
        write_hf_checkpoint(directory / name, tiny_config(vocab_size=vocabulary, max_positions=512), seed=seed)
    return directory


def sums(prompt: str, request) -> str:
    """Right, wrong, without an answer, in thought for ever, or cut off, by the request's address."""
    first, second = map(int, re.search(r"(\d+) \+ (\d+)", prompt).groups())
    drawn = hashlib.sha256(f"{request.id} {request.sample} {request.seed}".encode()).digest()[0] % 8
    answer = first + second + (drawn in (3, 4, 5))
    if drawn > 5:
        return "hm…" if drawn == 6 else "hm</think>It is so."
    return f"hm</think>It is \\boxed{{{answer}}}."


def question(at: int, **changed) -> dict:
    return {"id": f"q{at}", "query": f"{at} + {at}?", "answer": str(2 * at), "source": "ab"[at % 2]} | changed


@pytest.fixture
def synthesize(monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path):
    """Runs `rrm data synthesize` with fake models on questions.jsonl → (result, {model's name: its generator})."""
    write(tmp_path / "questions.jsonl", [question(at) for at in range(12)])
    monkeypatch.setattr(verifier_pool, "VerifierPool", InProcess)

    def run(*options, names=("small",), answer=sums, dies_after=None, given=("--questions", "questions.jsonl")):
        made = {}

        def open_model(options, show):
            name = options.model.name
            assert name not in made
            made[name] = FakeGenerator(
                Tokenizer.load(models / name), answer, 3, dies_after if name == names[-1] else None
            )
            return made[name]

        monkeypatch.setattr(loading, "open_model", open_model)
        monkeypatch.chdir(tmp_path)
        arguments = ["data", "synthesize", *given, "--out", "out.jsonl", "--max-new-tokens", 256]
        arguments += [word for name in names for word in ("--model", models / name)]
        result = CliRunner().invoke(_app, [str(word) for word in (*arguments, *options)])
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit, Killed)):
            raise result.exception
        return result, made

    return run


def test_pairs_of_one_generator(synthesize, models: Path, tmp_path: Path):
    result, made = synthesize()
    assert result.exit_code == 0, result.output
    requests = made["small"].requests
    assert {(request.id, request.sample) for request in requests} == {
        (f"q{at}", k) for at in range(12) for k in range(4)
    }
    prompt = Tokenizer.load(models / "small").decode(requests[0].prompt_ids)
    instruction = "Please reason step by step, and put your final answer within \\boxed{}."
    assert prompt == f"<|begin|><|user|>0 + 0?\n{instruction}<|assistant|><think>\n"
    fates = {q: [sums(f"{q[1:]} + {q[1:]}", next(r for r in requests if (r.id, r.sample) == (q, k))) for k in range(4)]
             for q in (f"q{at}" for at in range(12))}  # fmt: skip
    has = {q: (any(f"{{{2 * int(q[1:])}}}" in t for t in texts), any(f"{{{2 * int(q[1:]) + 1}}}" in t for t in texts))
           for q, texts in fates.items()}  # fmt: skip
    pairs = read(tmp_path / "out.jsonl")
    assert [pair["id"] for pair in pairs] == [q for q in has if has[q] == (True, True)]
    assert 0 < len(pairs) < 12
    for pair in pairs:
        at = int(pair["id"][1:])
        assert pair["response_1"] == f"It is \\boxed{{{2 * at}}}."
        assert pair["response_2"] == f"It is \\boxed{{{2 * at + 1}}}."
        assert (pair["query"], pair["label"], pair["source"]) == (f"{at} + {at}?", 1, "ab"[at % 2])
        assert pair["generators"] == ["small", "small"]
    said = result.stdout.splitlines()
    assert said[0] == f"questions kept: {len(pairs)} of 12 ({100 * len(pairs) / 12:.1f} %)"
    texts = [text for group in fates.values() for text in group]
    unfinished, silent = sum(text == "hm…" for text in texts), sum("so." in text for text in texts)
    assert f"unfinished thinking {unfinished}" in said[-1]
    assert f"no answer {silent}" in said[-1]
    assert said[-1].startswith("samples of small: 48, right ")
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text(encoding="utf-8"))
    assert sum(report["questions"].values()) == 12


def test_killed_anywhere_it_ends_up_the_same(synthesize, tmp_path: Path):
    first, made = synthesize(names=("small", "large"))
    expected, report = (tmp_path / "out.jsonl").read_bytes(), first.stdout
    assert [len(made[name].requests) for name in ("small", "large")] == [48, 48]
    assert {name for pair in read(tmp_path / "out.jsonl") for name in pair["generators"]} == {"small", "large"}
    for dies_after in (0, 17, 47):
        for path in [*tmp_path.glob("out.jsonl.samples/*"), tmp_path / "out.jsonl"]:
            path.unlink()
        result, _ = synthesize(names=("small", "large"), dies_after=dies_after)
        assert isinstance(result.exception, Killed)
        assert not (tmp_path / "out.jsonl").exists()
        largest = max((tmp_path / "out.jsonl.samples").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        with open(largest, "ab") as file:
            file.write(b'{"question":"q3"')  # what a kill in mid-write leaves
        result, made = synthesize(names=("small", "large"))
        assert result.exit_code == 0, result.output
        assert {name: len(one.requests) for name, one in made.items()} == {"large": 48 - dies_after}
        assert ((tmp_path / "out.jsonl").read_bytes(), result.stdout) == (expected, report)
    result, made = synthesize(names=("small", "large"))
    assert (made, (tmp_path / "out.jsonl").read_bytes(), result.stdout) == ({}, expected, report)


def test_unverified_samples_are_candidates_for_a_judge(synthesize, models: Path, tmp_path: Path):
    write(tmp_path / "questions.jsonl", [{"id": f"q{at}", "query": f"{at} + {at}?"} for at in range(12)])
    result, made = synthesize("--unverified")
    assert result.exit_code == 0, result.output
    requests = made["small"].requests
    tokenizer = Tokenizer.load(models / "small")
    assert tokenizer.decode(requests[0].prompt_ids) == "<|begin|><|user|>0 + 0?<|assistant|><think>\n"
    expected, cut = {}, 0
    for at in range(12):
        group = sorted((r for r in requests if r.id == f"q{at}"), key=lambda request: request.sample)
        texts = [sums(f"{at} + {at}", request) for request in group]
        expected[f"q{at}"] = [text.partition("</think>")[2] for text in texts if "</think>" in text]
        cut += sum("</think>" not in text for text in texts)
    rows = read(tmp_path / "out.jsonl")
    assert {row["id"]: row["responses"] for row in rows} == {q: texts for q, texts in expected.items() if texts}
    assert cut > 0
    assert f"responses left out, unfinished thinking: {cut}" in result.stdout
    refused, _ = synthesize("--unverified", "--verifier", "math")
    assert "leave out --verifier" in str(refused.exception)


def test_generators_and_samples_are_added_later(synthesize, tmp_path: Path):
    synthesize(names=("small", "large"), given=("--questions", "questions.jsonl", "--samples", "5"))
    together = (tmp_path / "out.jsonl").read_bytes()
    for path in [*tmp_path.glob("out.jsonl.samples/*"), *tmp_path.glob("out.jsonl*.json"), tmp_path / "out.jsonl"]:
        path.unlink()
    result, _ = synthesize("--samples", "2")
    assert "samples of small: 24" in result.stdout
    result, made = synthesize("--samples", "5")
    assert len(made["small"].requests) == 36
    result, made = synthesize("--samples", "5", names=("large",))
    assert list(made) == ["large"]
    assert "samples of small: 60" in result.stdout
    assert "samples of large: 60" in result.stdout
    assert (tmp_path / "out.jsonl").read_bytes() == together
    result, made = synthesize("--samples", "1")
    assert (made, "samples of small: 12" in result.stdout) == ({}, True)


def test_an_outage_keeps_what_there_is(serve, synthesize, models: Path, tmp_path: Path, monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    tokenizer, count = Tokenizer.load(models / "small"), iter(range(1000))

    def right(path, body):
        first = re.search(r"(\d+) \+", tokenizer.decode(body["prompt"])).group(1)
        text = f"hm</think>\\boxed{{{2 * int(first) + next(count) % 2}}}"
        return vllm(text, [*tokenizer.encode_control(text), tokenizer.eos_id])

    gone = (503, {"Retry-After": "86400"}, b"maintenance")
    broken = serve(lambda path, body: right(path, body) if len(broken.bodies) < 8 else gone)
    options = ("--backend-model", "m", "--concurrency", "1")
    result, _ = synthesize("--backend", broken.url, *options)
    assert "out of service" in str(result.exception)
    assert not (tmp_path / "out.jsonl").exists()
    (log,) = (tmp_path / "out.jsonl.samples").iterdir()
    kept = len(read(log)) - 1
    assert kept >= 6
    again = serve(right)
    result, _ = synthesize("--backend", again.url, *options)
    assert result.exit_code == 0, result.output
    assert len(again.bodies) == 48 - kept
    assert len(read(tmp_path / "out.jsonl")) == 12
    talks = serve(
        lambda path, body: chat(f"The answer is {body['messages'][0]['content'][0]}.", reasoning_content="hm")
    )
    result, _ = synthesize("--backend", talks.url, "--backend-model", "n", "--backend-api", "chat")
    assert "samples of n: 48, right 4 (8.3 %), wrong 44" in result.stdout  # 0 + 0 is 0
    assert "samples of m: 48" in result.stdout
    assert talks.bodies[0]["messages"][0]["content"].endswith("\\boxed{}.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "1"), "seed: was 0, is now 1"),
        (("--temperature", "1"), "temperature: was 0.6, is now 1.0"),
        (("--instruction", ""), "instruction: was"),
        (("--verifier", "math"), "verifier: was 'auto', is now 'math'"),
    ],
)
def test_changed_settings_are_refused(synthesize, tmp_path: Path, options, message):
    synthesize("--samples", "1")
    before = (tmp_path / "out.jsonl").read_bytes()
    result, made = synthesize(*options)
    assert message in str(result.exception)
    assert (made, (tmp_path / "out.jsonl").read_bytes()) == ({}, before)


def test_changed_questions_are_refused_and_others_passed_over(synthesize, tmp_path: Path):
    synthesize()
    write(tmp_path / "questions.jsonl", [question(at) for at in (3, 4, 20)])
    result, made = synthesize()
    assert {request.id for request in made["small"].requests} == {"q20"}
    assert "samples of small: 12" in result.stdout
    assert {pair["id"] for pair in read(tmp_path / "out.jsonl")} <= {"q3", "q4", "q20"}
    write(tmp_path / "questions.jsonl", [question(3, query="3 + 3 = ?")])
    assert "answers another question with id 'q3'" in str(synthesize()[0].exception)


def test_rows_that_cannot_be_used(synthesize, tmp_path: Path):
    rows = [
        "[]",
        question(0, verifier="code"),
        question(1),
        question(1),
        question(2, answer=5),
        question(3, verifier="guess"),
        question(4, query="4 + 4?" + "x" * 600),
        question(5, answer=None),
        question(6, verifier="numeric"),
    ]
    write(tmp_path / "questions.jsonl", rows)
    result, made = synthesize()
    assert result.exit_code == 1
    assert {request.id for request in made["small"].requests} == {"q1", "q5", "q6"}
    for number, why in [
        (1, "expected a JSON object"),
        (2, "programs are not run here"),
        (4, "twice"),
        (5, "must be a string"),
        (6, "no verifier 'guess'"),
    ]:
        assert re.search(f"questions.jsonl:{number}: .*{why}", result.stderr)
    assert "1 question(s) are too long for small, such as id 'q4'" in result.stderr
    assert "no gold 1, no samples 1" in result.stdout or "no samples 1, no gold 1" in result.stdout
    result, made = synthesize("--strict")
    assert ("questions.jsonl:1: expected a JSON object" in str(result.exception), made) == (True, {})


@pytest.mark.parametrize(
    ("options", "names", "given", "message"),
    [
        ((), (), ("--questions", "questions.jsonl"), "nothing gives responses"),
        ((), ("small",), (), "--model answers --questions"),
        ((), ("small", "small"), None, "named twice"),
        (("--backend", "http://localhost:1", "--backend-model", "m"), ("small", "large"), None, "one --model"),
        (("--verifier", "given"), ("small",), None, "a model's samples have none"),
        (("--verifier", "sense"), ("small",), None, "no verifier 'sense'"),
        (("--max-new-tokens", "512"), ("small",), None, "leaves no room for a question"),
        (("--top-p", "0"), ("small",), None, "top_p must be in"),
        (("--out", "questions.jsonl"), ("small",), None, "would be written to"),
    ],
)
def test_wrong_options(synthesize, tmp_path: Path, options, names, given, message):
    before = (tmp_path / "questions.jsonl").read_bytes()
    given = ("--questions", "questions.jsonl") if given is None else given
    result, made = synthesize(*options, names=names, given=given)
    assert message in str(result.exception)
    assert (made, (tmp_path / "questions.jsonl").read_bytes()) == ({}, before)
    assert not (tmp_path / "out.jsonl").exists()


def test_what_another_job_wrote_is_not_overwritten(synthesize, tmp_path: Path):
    (tmp_path / "out.jsonl").write_text("mine\n", encoding="utf-8")
    assert "it is not this job's" in str(synthesize()[0].exception)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "mine\n"


def test_candidates_with_a_generator_and_alone(synthesize, tmp_path: Path):
    right, wrong = "A: 2", "<think>?</think>A: 3"
    rows = [
        {"id": "q1", "query": "1 + 1?", "responses": [right, wrong], "correct": [False, True]},
        {"id": "q2", "query": "2 + 2 = ?", "responses": [right, wrong]},
        {"id": "x", "query": "1 + 1?", "responses": [right, wrong]},
    ]
    write(tmp_path / "candidates.jsonl", rows)
    given = ("--questions", "questions.jsonl", "--candidates", "candidates.jsonl")
    result, made = synthesize("--samples", "1", given=given)
    assert result.exit_code == 1
    assert "candidates.jsonl:2: the query is not that of question 'q2'" in result.stderr
    assert "candidates.jsonl:3: no question has the id 'x'" in result.stderr
    assert len(made["small"].requests) == 12
    assert "samples of candidates.jsonl: 2, right 1 (50.0 %), wrong 1" in result.stdout
    pair = next(pair for pair in read(tmp_path / "out.jsonl") if pair["id"] == "q1")
    assert (pair["response_1"][-2:], pair["response_2"][-2:]) in [(" 2", " 3"), (" 2", "}."), ("}.", " 3")]
    rows = [row | {"answer": "2"} for row in (rows[0], rows[2])]
    write(tmp_path / "candidates.jsonl", rows)
    alone = ("--candidates", "candidates.jsonl", "--out", "alone.jsonl")
    result, _ = synthesize(names=(), given=alone[:2], answer=None)
    assert "kept: 2 of 2" in result.stdout
    assert [pair["response_2"] for pair in read(tmp_path / "out.jsonl")] == ["A: 3", "A: 3"]


def test_a_mark_that_is_given_is_believed(synthesize, tmp_path: Path):
    rows = [
        {"id": "a", "query": "?", "responses": ["x", "y"], "correct": [False, True]},
        {"id": "b", "query": "?", "responses": ["x", "y"]},
    ]
    write(tmp_path / "candidates.jsonl", rows)
    result, _ = synthesize("--verifier", "given", names=(), given=("--candidates", "candidates.jsonl"))
    assert (result.exit_code, "candidates.jsonl:2: the row has no 'correct'" in result.stderr) == (1, True)
    (pair,) = read(tmp_path / "out.jsonl")
    assert (pair["response_1"], pair["response_2"]) == ("y", "x")


def test_prepared_questions(synthesize, tmp_path: Path):
    """A prepared data set of the same questions is read like JSONL; one of pairs is refused."""
    records = [parse_question(question(at)) for at in range(12)]
    write_prepared(tmp_path / "prepared", RecordsBuilder, iter(records), kind="questions", facts={})
    pairs = [Pair("1", "q", "a", "b", 1)]
    write_prepared(tmp_path / "pairs", RecordsBuilder, iter(pairs), kind="pairs", facts={})
    first, _ = synthesize()
    result, made = synthesize("--out", "again.jsonl", given=("--questions", "prepared"))
    assert len(made["small"].requests) == 48
    assert result.stdout == first.stdout
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    facts = json.loads((tmp_path / "again.jsonl.run.json").read_text(encoding="utf-8"))
    assert facts["inputs"]["questions"]["path"].startswith("prepared/")
    result, made = synthesize("--out", "third.jsonl", given=("--questions", "pairs"))
    assert ("holds pairs, not questions" in str(result.exception), made) == (True, {})
