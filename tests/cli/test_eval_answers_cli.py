"""`rrm eval answer-…` and `rrm eval arena-hard` from the outside: kills, files of answers, re-scores, wrong options."""

import json
import re
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data import verifier_pool
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from tests.data.candidates import InProcess
from tests.evaluation.benchmark_rows import write_rows
from tests.judging.fake_generator import FakeGenerator, Killed, prefers

pytestmark = pytest.mark.usefixtures("quick_compiles")
COUNT = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of one token a character."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = write_word_tokenizer(directory, string.printable)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary, max_positions=8192))
    return directory


def adds(prompt: str, request) -> str:
    """Of the questions 0 + 0 to 7 + 7 the first four are answered rightly, all but by sample 1; one never ends."""
    at = int(re.findall(r"(\d) \+", prompt)[0])
    if at == 7:
        return "hm…"
    return f"hm</think>It is \\boxed{{{2 * at + (at > 3 or request.sample == 1)}}}."


@pytest.fixture
def rrm(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    """`rrm(verb and options, answer=…)` → (result, generator), in a directory with the benchmarks' files."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{at} + {at}?", "answer": f"It is.\n#### {2 * at}"} for at in range(COUNT)]
    write_rows(tmp_path / "gsm8k.jsonl", rows)
    prompts = [{"uid": f"u{at}", "category": "hard_prompt", "prompt": f"p {at}"} for at in range(COUNT)]
    write_rows(tmp_path / "question.jsonl", prompts)
    monkeypatch.setattr(verifier_pool, "VerifierPool", InProcess)

    def run(line: str, answer=adds, dies_after: int | None = None):
        generator = FakeGenerator(Tokenizer.load(model), answer, 3, dies_after)
        monkeypatch.setattr(loading, "open_model", lambda *args: generator)
        result = CliRunner().invoke(_app, line.replace("MODEL", f"--model {model} --max-new-tokens 128").split())
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit, Killed)):
            raise result.exception
        return result, generator

    return run


def scores(path: Path) -> dict[str, tuple[float, dict]]:
    ((tree),) = json.loads(path.read_text(encoding="utf-8"))["scores"].values()
    return {one["name"]: (one["value"], one["counts"]) for one in tree}


GSM8K = "eval answer-gsm8k --data gsm8k.jsonl"


def test_answers_and_scores(rrm, tmp_path: Path):
    result, generator = rrm(f"{GSM8K} MODEL --out o --n 3")
    assert result.exit_code == 0, result.output
    prompt = generator.tokenizer.decode(generator.requests[0].prompt_ids)
    instruction = "Please reason step by step, and put your final answer within \\boxed{}."
    assert prompt == f"<|begin|><|user|>0 + 0?\n{instruction}<|assistant|><think>\n"
    found = scores(tmp_path / "o.json")
    assert found["Accuracy"][0] == pytest.approx(4 * 2 / 3 / 8)
    assert found["Majority of 3"][0] == 4 / 8
    counts = found["Accuracy"][1]
    assert (counts["votes"], counts["invalid"], counts["cut_off"]) == (24, 3, 3)
    assert "24 responses drawn now, 0 found in the store" in result.stdout
    assert "all: 8 of the 1319 published rows" in result.stdout
    assert re.search(r"Accuracy +33.3 +.* 8 +24 +3 +3 +\d+", result.stdout)
    assert "| Majority of 3 | 50.0 |" in (tmp_path / "o.md").read_text(encoding="utf-8")
    assert rrm("compare A=o --format csv")[0].stdout.splitlines()[1].startswith("A,,answer-gsm8k,Accuracy,0.3333")
    # Another model over the same questions, with a paired test; and the kept rows, scored again without a model.
    result, _ = rrm(f"{GSM8K} MODEL --out p --against o", answer=lambda prompt, request: "</think>\\boxed{0}")
    assert result.exit_code == 0, result.output
    assert re.search(r"Accuracy +12.5 +33.3 +-20.8", result.stdout)
    result, generator = rrm(f"{GSM8K} --verdict-file o.judged.jsonl --out again")
    assert (result.exit_code, generator.requests) == (0, [])
    assert scores(tmp_path / "again.json") == found


def test_killed_anywhere_it_ends_up_the_same(rrm, tmp_path: Path):
    rrm(f"{GSM8K} MODEL --out whole --n 2")
    for dies_after in (0, 7):
        assert isinstance(rrm(f"{GSM8K} MODEL --out o --n 2", dies_after=dies_after)[0].exception, Killed)
        assert not (tmp_path / "o.json").exists()
    result, generator = rrm(f"{GSM8K} MODEL --out o --n 2")
    assert (result.exit_code, len(generator.requests)) == (0, 9)
    assert "9 responses drawn now, 7 found" in result.stdout
    for ending in (".json", ".judged.jsonl"):
        assert (tmp_path / f"o{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    result, generator = rrm(f"{GSM8K} MODEL --out o --n 2 --instruction Go!")
    assert "prompt: was" in str(result.exception)
    assert generator.requests == []


def test_answers_of_rrm_answer(rrm, tmp_path: Path):
    """Questions as `rrm data prepare` names them, answered and scored apart."""
    prepare = "data prepare gsm8k --src gsm8k.jsonl --out questions"
    assert rrm(prepare)[0].exit_code == 0
    assert rrm("answer --questions questions --out c.jsonl --n 3 MODEL")[0].exit_code == 0
    result, generator = rrm(f"{GSM8K} --answers c.jsonl --out o")
    assert (result.exit_code, generator.requests) == (0, []), result.output
    found = scores(tmp_path / "o.json")
    assert (found["Accuracy"][0], found["Majority of 3"][0]) == (pytest.approx(1 / 3), 1 / 2)
    assert found["Accuracy"][1]["cut_off"] == 3
    result, _ = rrm(f"{GSM8K} --answers c.jsonl --out first --n 1")
    assert scores(tmp_path / "first.json")["Accuracy"][0] == 1 / 2
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(tmp_path / "fewer.jsonl", rows[:-2])
    result, _ = rrm(f"{GSM8K} --answers fewer.jsonl --out fewer")
    assert result.exit_code == 1
    assert "2 item(s) were not judged" in result.stdout
    write_rows(tmp_path / "twice.jsonl", [*rows, rows[0], {"id": "x"}])
    result, _ = rrm(f"{GSM8K} --answers twice.jsonl --out twice")
    assert result.exit_code == 1
    assert f"twice.jsonl:{len(rows) + 1}: id {rows[0]['id']!r} appears twice" in result.stderr
    assert f"twice.jsonl:{len(rows) + 2}: " in result.stderr
    assert "2 unusable row(s) were passed over" in result.stdout
    assert scores(tmp_path / "twice.json")["Accuracy"][0] == pytest.approx(1 / 3)
    write_rows(tmp_path / "others.jsonl", [rows[0] | {"query": "another"}])
    assert "is not this data's question" in str(rrm(f"{GSM8K} --answers others.jsonl --out x")[0].exception)


ARENA = "eval arena-hard --data question.jsonl --answers a.jsonl --baseline b.jsonl"


def test_arena_hard(rrm, tmp_path: Path):
    """The model's answer is good to six of eight prompts; the judge names the good one wherever it stands."""
    texts = [("good", "bad") if at < 6 else ("bad", "good") for at in range(COUNT)]
    rows = [{"id": f"u{at}", "query": f"p {at}"} for at in range(COUNT)]
    for name, which in (("a", 0), ("b", 1)):
        said = [row | {"responses": [text[which]]} for row, text in zip(rows, texts, strict=True)]
        write_rows(tmp_path / f"{name}.jsonl", said)
    result, generator = rrm(f"{ARENA} MODEL --out o", answer=prefers("good"))
    assert result.exit_code == 0, result.output
    assert len(generator.requests) == 2 * COUNT
    assert scores(tmp_path / "o.json")["Win rate"][0] == 6 / 8
    assert re.search(r"Win rate at equal length +\d", result.stdout)
    result, again = rrm(f"{ARENA} MODEL --out o", answer=prefers("good"))
    assert (result.exit_code, again.requests) == (0, [])
    result, _ = rrm(f"{ARENA} --verdict-file o.judged.jsonl --out again")
    assert scores(tmp_path / "again.json") == scores(tmp_path / "o.json")
    # A baseline that lacks an answer, and a judge that always names the first one: ½.
    write_rows(tmp_path / "b.jsonl", said[1:])
    result, _ = rrm(f"{ARENA} MODEL --out first", answer=lambda prompt, request: "</think>\\boxed{Assistant 1}")
    assert result.exit_code == 1
    assert "no answer to 'u0'" in result.stderr
    assert scores(tmp_path / "first.json")["Win rate"][0] == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{GSM8K} MODEL --out o --votes 3", "--votes is of a model that judges"),
        (f"{GSM8K} MODEL --out o --strategy swiss", "--strategy is of a model that judges"),
        (f"{GSM8K} MODEL --out o --order both", "--order are of judges"),
        (f"{GSM8K} MODEL --out o --baseline x", "--baseline is of"),
        (f"{GSM8K} MODEL --out o --answers gsm8k.jsonl", "leave --model out"),
        (f"{GSM8K} --out o", "--model is needed, or a file of --answers"),
        (f"{GSM8K} MODEL", "--out is needed"),
        (f"{GSM8K} --out o --answers gsm8k.jsonl --prefix x", "--prefix says how a model is asked"),
        ("eval arena-hard --data question.jsonl MODEL --out o", "name both files"),
        ("eval arena-hard --data question.jsonl --n 2 MODEL --out o", "--n is of a model that answers"),
        ("eval pairs --data question.jsonl --answers x MODEL --out o", "--answers is of"),
    ],
)
def test_wrong_options(rrm, tmp_path: Path, line, message):
    result, generator = rrm(line)
    assert message in str(result.exception)
    assert (generator.requests, list(tmp_path.glob("o*"))) == ([], [])
