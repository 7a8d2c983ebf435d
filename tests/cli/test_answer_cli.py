"""`rrm answer` from the outside: candidates for every verb that reads them, kills, servers, policies trained here."""

import json
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.checkpoints.convert import convert
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data import verifier_pool
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.quickstart import world
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.policy_prompt import policy_prompt
from rrm_jax.training.train import train
from tests.data.candidates import InProcess
from tests.judging.fake_generator import FakeGenerator, Killed, prefers
from tests.sampling.stub_server import chat, stub_servers
from tests.training.world import make_base, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")
serve = pytest.fixture(stub_servers, name="serve")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of one token a character."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = write_word_tokenizer(directory, string.printable)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary, max_positions=16384))
    return directory


def thinks(prompt: str, request) -> str:
    """Right, wrong, cut off in thought, and without an answer, by the sample's number."""
    at = int(request.id[1:])
    return [f"hm</think>good \\boxed{{{at}}}", f"so</think>bad \\boxed{{{at + 1}}}", "hm…", "hm</think>bad"][
        request.sample
    ]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rrm(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    """`rrm(verb and options, answer=…)` → (result, generator), in a directory with questions.jsonl."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"q{at}", "query": f"Which is {at}?", "answer": str(at), "source": "s"} for at in range(4)]
    world.write_jsonl(tmp_path / "questions.jsonl", rows)
    monkeypatch.setattr(verifier_pool, "VerifierPool", InProcess)

    def run(line: str, *options, answer=thinks, using: Path = model, dies_after: int | None = None):
        generator = FakeGenerator(Tokenizer.load(open_source(using).assets), answer, 3, dies_after)
        monkeypatch.setattr(loading, "open_model", lambda *args: generator)
        result = CliRunner().invoke(_app, [*line.replace("MODEL", str(using)).split(), *map(str, options)])
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit, Killed)):
            raise result.exception
        return result, generator

    return run


ANSWER = "answer --model MODEL --questions questions.jsonl --out c.jsonl --max-new-tokens 64"


def test_candidates_that_every_verb_reads(rrm, tmp_path: Path):
    result, generator = rrm(f"{ANSWER} --n 4")
    assert result.exit_code == 0, result.output
    assert "responses: 16 (16 drawn now) to 4 questions" in result.stdout
    assert "cut off at the token limit: 4; in their thinking: 4" in result.stdout
    prompt = generator.tokenizer.decode(generator.requests[0].prompt_ids)
    assert prompt == "<|begin|><|user|>Which is 0?<|assistant|><think>\n"
    row = read(tmp_path / "c.jsonl")[2]
    assert row == {
        "id": "q2", "query": "Which is 2?", "answer": "2", "source": "s",
        "finish_reasons": ["stop", "stop", "length", "stop"],
        "responses": ["<think>\nhm</think>good \\boxed{2}", "<think>\nso</think>bad \\boxed{3}", "<think>\nhm",
                      "<think>\nhm</think>bad"],
        "tokens": row["tokens"],
    }  # fmt: skip
    assert row["tokens"][2] == 2  # h, m, and no end
    # Verified as they stand, with the answers that they bring along.
    assert rrm("data verify --candidates c.jsonl --out v.jsonl --verifier math")[0].exit_code == 0
    assert read(tmp_path / "v.jsonl")[2]["outcomes"] == ["right", "wrong", "no answer", "no answer"]
    # Pairs of a right and a wrong one; what was cut off is left out.
    assert rrm("data synthesize --candidates c.jsonl --out pairs.jsonl")[0].exit_code == 0
    assert {pair["response_1"] for pair in read(tmp_path / "pairs.jsonl")} == {
        f"good \\boxed{{{at}}}" for at in range(4)
    }
    assert json.loads((tmp_path / "pairs.jsonl.report.json").read_text())["questions"] == {"kept": 4}
    # Ranked and labelled by a judge that is not shown the thinking.
    result, judge = rrm(
        "rank --model MODEL --candidates c.jsonl --out r.jsonl --strategy knockout", answer=prefers("good")
    )
    assert result.exit_code == 0, result.output
    assert [ranked["best"] for ranked in read(tmp_path / "r.jsonl")] == [0] * 4
    label = "data label --model MODEL --candidates c.jsonl --require-answer --whole --out l.jsonl"
    result, judge = rrm(label, answer=prefers("good"))
    assert result.exit_code == 0, result.output
    labelled = read(tmp_path / "l.jsonl")
    assert [pair["label"] for pair in labelled] == [1] * 4
    assert labelled[2]["response_1"] == row["responses"][0]
    assert "tokens" not in labelled[2]
    assert "hm" not in "".join(judge.tokenizer.decode(request.prompt_ids) for request in judge.requests)


def test_killed_anywhere_it_ends_up_the_same(rrm, tmp_path: Path):
    rrm(f"{ANSWER} --n 4 --out whole.jsonl")
    for dies_after in (0, 5):
        assert isinstance(rrm(f"{ANSWER} --n 4", dies_after=dies_after)[0].exception, Killed)
        assert not (tmp_path / "c.jsonl").exists()
    result, generator = rrm(f"{ANSWER} --n 4")
    assert (result.exit_code, len(generator.requests)) == (0, 11)
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # More of them draws only those, and other settings or questions nothing.
    result, generator = rrm(f"{ANSWER} --n 2 --out more.jsonl")
    result, generator = rrm(f"{ANSWER} --n 3 --out more.jsonl")
    assert {request.sample for request in generator.requests} == {2}
    for options, message in [
        ("--n 4 --seed 1", "seed: was 0, is now 1"),
        ("--n 4 --prefix x", "prompt: was"),
        ("--n 4 --user no", "--user must hold {query} once"),
        ("--questions c.jsonl", "c.jsonl would be written to"),
    ]:
        result, generator = rrm(f"{ANSWER} {options}")
        assert message in str(result.exception)
        assert generator.requests == []
    facts = json.loads((tmp_path / "c.jsonl.run.json").read_text())
    assert facts["config"]["prompt"]["prefix"] == "<think>\n"
    assert list(facts["inputs"]) == ["questions"]


def test_how_it_is_asked(rrm, tmp_path: Path):
    def prompts(*options: str) -> set[str]:
        result, generator = rrm(f"{ANSWER} --out {len(list(tmp_path.iterdir()))}.jsonl", *options)
        assert result.exit_code == 0, result.output
        return {generator.tokenizer.decode(request.prompt_ids) for request in generator.requests}

    asked = prompts("--system", "Be {query}.", "--user", "Q: {query}\nA:", "--prefix", "<think></think>")
    assert "<|begin|>Be {query}.<|user|>Q: Which is 0?\nA:<|assistant|><think></think>" in asked
    assert "<|begin|><|user|>Which<|assistant|>" in prompts("--prefix", "", "--max-prompt-tokens", "8")


def test_a_server_begins_the_turn_itself(serve, rrm, monkeypatch, tmp_path: Path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(lambda path, body: chat(f"It is {body['messages'][0]['content'][9]}.", reasoning_content="hm"))
    options = ("--backend", server.url, "--backend-model", "m", "--backend-api", "chat")
    assert "leave --prefix out" in str(rrm(ANSWER, *options, "--prefix", "x")[0].exception)
    result, _ = rrm(ANSWER, *options)
    assert result.exit_code == 0, result.output
    assert [row["responses"] for row in read(tmp_path / "c.jsonl")] == [[f"hm</think>It is {at}."] for at in range(4)]


def test_a_policy_is_asked_as_it_was_trained(rrm, tmp_path: Path):
    """What the run records goes along when it is converted; its responses train it on."""
    make_base(tmp_path / "base")
    world.write_jsonl(tmp_path / "solutions.jsonl", world.solutions(8, 1, 0.0))
    policy = {"system": "Choose the right answer.", "prefix": "<think>", "max_prompt_tokens": 20}
    changes = {
        "task": "policy",
        "method": "supervised",
        "policy": policy,
        "steps": 1,
        "model__path": str(tmp_path / "base"),
    }
    config = TrainConfig.model_validate(
        settings(tmp_path, "run", **changes, data__train=str(tmp_path / "solutions.jsonl"))
    )
    train(config, False, lambda message: None)
    convert(tmp_path / "run", tmp_path / "converted")
    questions = list(world.questions(3, 5))
    questions.append(questions[0] | {"id": "long", "query": questions[0]["query"] * 9})
    world.write_jsonl(tmp_path / "questions.jsonl", questions)
    tokenizer = Tokenizer.load(tmp_path / "run" / "assets")
    for using in (tmp_path / "run", tmp_path / "converted"):
        answer = lambda prompt, request: f"{request.sample}</think>{request.sample}"  # noqa: E731
        result, generator = rrm(f"{ANSWER} --n 2 --out {using.name}.jsonl", using=using, answer=answer)
        assert result.exit_code == 0, result.output
        wanted = {tuple(policy_prompt(config.policy, tokenizer, question["query"])[0]) for question in questions}
        assert {request.prompt_ids for request in generator.requests} == wanted
        assert "the end of 1 question(s) was cut off" in result.stderr
    assert open_source(tmp_path / "converted").facts["policy"]["system"] == "Choose the right answer."
    row = read(tmp_path / "run.jsonl")[0]
    assert row["responses"] == ["<think>0</think>0", "<think>1</think>1"]
    pairs = [
        {"id": row["id"], "query": row["query"], "label": 1, "response_1": one, "response_2": two}
        for row in read(tmp_path / "run.jsonl")
        for one, two in [row["responses"]]
    ]
    world.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    more = changes | {"method": "dpo", "dpo": {"batch_size": 2}, "model__path": str(tmp_path / "run")}
    config = settings(tmp_path, "dpo", **more, data__train=str(tmp_path / "pairs.jsonl"))
    train(TrainConfig.model_validate(config), False, lambda message: None)
    assert open_source(tmp_path / "dpo").facts["policy"]["prefix"] == "<think>"
