"""Verbs that write at a server: only the tokenizer and the configuration are here, and an outage is never a verdict."""

import json
import re
import shlex
import shutil
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import backend
from rrm_jax.cli.main import _app
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.template import check_chat
from rrm_jax.models.config import to_hf
from rrm_jax.testing import tiny_config
from tests.judging.fake_generator import FakeGenerator, prefers
from tests.sampling.stub_server import chat, stub_servers, vllm

KEY = "sk-secret-0123456789"
GONE = (503, {"Retry-After": "86400"}, b"maintenance")


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Path:
    """A tokenizer of one token a character, and config.json: no weights."""
    directory = tmp_path_factory.mktemp("bare")
    vocabulary = write_word_tokenizer(directory, string.printable)
    config = to_hf(tiny_config(vocab_size=vocabulary, max_positions=16384))
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def tokenizer(bare) -> Tokenizer:
    return Tokenizer.load(bare)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    pairs = [{"id": at, "query": f"q{at}", "response_1": f"good {at}", "response_2": f"bad {at}"} for at in range(6)]
    rows = {
        "pairs": pairs,
        "candidates": [{"id": "c", "query": "q", "responses": ["bad 1", "good", "bad 2"]}],
        "prompts": [{"id": "p", "prompt": "2 + 2 ="}, {"id": "q", "prompt": "hi"}],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


serve = pytest.fixture(stub_servers, name="serve")


def run(verb, bare, server, *options):
    given = {"judge": "pairs", "rank": "candidates", "generate": "prompts"}[verb]
    arguments = [verb, "--model", bare, f"--{given}", f"{given}.jsonl", "--out", "out.jsonl"]
    if server is not None:
        arguments += ["--backend", server.url, "--backend-model", "m"]
    result = CliRunner().invoke(_app, [str(word) for word in [*arguments, *options]])
    if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit)):
        raise result.exception
    return result


def rows(name="out.jsonl"):
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def judges(tokenizer):
    """A server of token ids that prefers what is good."""

    def answer(path, body):
        text = prefers("good")(tokenizer.decode(body["prompt"]), None)
        return vllm(text, [*tokenizer.encode_control(text), tokenizer.eos_id])

    return answer


def test_judge(place, serve, bare, tokenizer):
    server = serve(judges(tokenizer))
    result = run(
        "judge", bare, server, "--votes", "2", "--order", "both", "--concurrency", "3", "--max-new-tokens", "64"
    )
    assert result.exit_code == 0, result.output
    assert [row["winner"] for row in rows()] == [1] * 6
    assert len(server.bodies) == 24
    assert server.most_open <= 3
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert re.search(r"judging: 6/6 after \d+ s, 24 completions, \d+ tokens", result.stderr)
    assert "loaded" not in result.stderr
    settings = json.loads((place / "out.jsonl.run.json").read_text(encoding="utf-8"))["config"]
    assert settings["model"] == "m at a server, by its completions API"
    for file in place.iterdir():
        assert KEY not in file.read_text(encoding="utf-8"), file
        assert "127.0.0.1" not in file.read_text(encoding="utf-8") or file.name.endswith(".run.json")


def test_an_outage_is_no_verdict_and_the_job_goes_on_at_another_address(place, serve, bare, tokenizer):
    right = judges(tokenizer)
    count = iter(range(100))
    server = serve(lambda path, body: right(path, body) if next(count) < 5 else GONE)
    result = run("judge", bare, server, "--votes", "2", "--concurrency", "2")
    assert isinstance(result.exception, RrmError)
    said = str(result.exception)
    assert "out of service, and asks to wait 86400 s: HTTP 503: maintenance" in said
    assert KEY not in said
    kept = len(rows("out.jsonl.votes.jsonl")) - 1
    assert 4 <= kept <= 5  # one may have been under way
    other = serve(right)
    result = run("judge", bare, other, "--votes", "2")
    assert result.exit_code == 0
    assert len(other.bodies) == 12 - kept
    assert "votes: 12 (invalid: 0" in result.stdout
    third = serve(right)
    refused = run("judge", bare, third, "--votes", "2", "--backend-model", "another")
    assert "model: was 'm at a server, by its completions API', is now 'another at" in str(refused.exception)
    assert third.bodies == []


def test_judge_with_a_budget(place, serve, bare, tokenizer):
    """The server thinks for ever in odd questions; there the second call gets the closing, and the verdict."""
    end = tokenizer.control_id("</think>")
    closing = tokenizer.encode_control("\n</think>\n\n")

    def answer(path, body):
        ids = body["prompt"]
        if ids[-len(closing) :] == closing:
            return vllm("", [*tokenizer.encode_text("\\boxed{Assistant 2}"), tokenizer.eos_id])
        if int(re.search(r"q(\d)", tokenizer.decode(ids)).group(1)) % 2:
            return vllm("", tokenizer.encode_text("h" * body["max_tokens"]), "length")
        return vllm("", [end, *tokenizer.encode_text("\\boxed{Assistant 1}"), tokenizer.eos_id])

    server = serve(answer)
    result = run("judge", bare, server, "--order", "given", "--thinking-budget", "30")
    assert result.exit_code == 0, result.output
    done = {row["id"]: row for row in rows()}
    assert [done[str(at)]["winner"] for at in range(6)] == [1, 2, 1, 2, 1, 2]
    assert [done[str(at)]["votes"][0]["forced"] for at in range(6)] == [False, True] * 3
    assert done["1"]["votes"][0]["text"] == "h" * 30 + "\n</think>\n\n\\boxed{Assistant 2}"
    assert "forced by the thinking budget: 3)" in result.stdout
    assert sorted(body["max_tokens"] for body in server.bodies) == [30] * 6 + [100] * 3
    assert {body["temperature"] for body in server.bodies if body["max_tokens"] == 100} == {0}
    settings = json.loads((place / "out.jsonl.run.json").read_text(encoding="utf-8"))["config"]
    assert settings["max_new_tokens"] == 30 + len(closing) + 100


def test_judge_by_chat(place, serve, bare):
    def answer(path, body):
        (_, system), (_, user) = ((turn["role"], turn["content"]) for turn in body["messages"])
        assert "Assistant 1 or Assistant 2" in system
        shown = 1 if "good" in user.split("### Assistant 2")[0] else 2
        return chat(f"\\boxed{{Assistant {shown}}}", reasoning_content="hm </think>\\boxed{Assistant 1}")

    server = serve(answer)
    result = run("judge", bare, server, "--backend-api", "chat", "--api-key-env", "OPENAI_API_KEY")
    assert result.exit_code == 0, result.output
    assert [row["winner"] for row in rows()] == [1] * 6
    assert rows()[0]["votes"][0]["text"].startswith("hm < /think>\\boxed{Assistant 1}</think>\\boxed{Assistant ")
    assert set(server.paths) == {"/v1/chat/completions"}
    assert "does not end with '<think>\\n', as this judge's does" in result.stderr


def test_a_chat_template_that_begins_as_the_judge_does_is_not_warned_of(bare, tokenizer, tmp_path):
    shutil.copytree(bare, tmp_path, dirs_exist_ok=True)
    own = json.loads((bare / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    (tmp_path / "chat_template.jinja").write_text(own + "{{ '<think>\n' }}", encoding="utf-8")
    assert check_chat(Tokenizer.load(tmp_path), "<think>\n") is None
    assert "completions" in (check_chat(tokenizer, "<think>\n") or "")
    assert check_chat(tokenizer, "") is None


def test_rank(place, serve, bare, tokenizer):
    result = run("rank", bare, serve(judges(tokenizer)), "--strategy", "knockout", "--invalid", "random")
    assert result.exit_code == 0, result.output
    assert rows()[0]["best"] == 1


def test_generate(place, serve, bare, tokenizer):
    server = serve(lambda path, body: vllm("ab", [*tokenizer.encode_text("ab"), tokenizer.eos_id]))
    result = run("generate", bare, server, "--n", "2", "--min-p", "0.05", "--max-new-tokens", "9")
    assert result.exit_code == 0, result.output
    made = {(row["id"], row["sample"]): row for row in rows()}
    assert set(made) == {("p", 0), ("p", 1), ("q", 0), ("q", 1)}
    assert made["p", 0]["text"] == "ab<|end|>"
    assert (made["p", 0]["logprobs"], "model_logprobs" in made["p", 0]) == ([], False)
    assert {body["min_p"] for body in server.bodies} == {0.05}
    prompts = {tuple(body["prompt"]) for body in server.bodies}
    assert prompts == {tuple(tokenizer.encode_control("<|begin|>" + text)) for text in ("2 + 2 =", "hi")}
    assert "min_p" in str(run("generate", bare, server, "--n", "2", "--max-new-tokens", "9").exception)


def test_generate_by_chat(place, serve, bare):
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": "ids", "prompt_ids": [1, 2]}\n')
    server = serve(lambda path, body: chat("four"))
    result = run("generate", bare, server, "--backend-api", "chat", "--max-new-tokens", "9")
    assert result.exit_code == 1
    assert "chat API takes no 'prompt_ids'" in result.stderr
    assert {row["id"]: row["text"] for row in rows()} == {"p": "four", "q": "four"}
    assert [{"role": "user", "content": "2 + 2 ="}] in [body["messages"] for body in server.bodies]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--constrain-verdict",), "a constrained verdict needs the model's own probabilities"),
        (("--backend-api", "chat", "--thinking-budget", "9"), "cannot be kept on the chat API"),
        (("--thinking-budget", "9", "--direct"), "a direct judge has none"),
        (("--thinking-budget", "9", "--max-new-tokens", "20", "--backend", "http://h:x"), "not the address"),
        (("--thinking-budget", "9", "--max-new-tokens", "10"), "exceed max_new_tokens (10)"),
        (("--api-key-env", "NOT_SET"), "variable NOT_SET holds no API key"),
        (("--backend-model", ""), "--backend needs --backend-model"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(place, serve, bare, options, message):
    server = serve(lambda path, body: GONE)
    assert message in str(run("judge", bare, server, *options).exception)
    assert server.bodies == []
    assert not list(place.glob("out.jsonl*"))


def test_options_of_a_server_need_one(place, bare):
    for options in (("--backend-model", "m"), ("--api-key-env", "X")):
        assert "is for a server" in str(run("judge", bare, None, *options).exception)


def test_models_of_other_kinds_have_positions_too(place, serve, bare, tokenizer, tmp_path):
    other = tmp_path / "other"
    write_word_tokenizer(other, string.printable)
    config = {"model_type": "llama4", "text_config": {"max_position_embeddings": 5000}}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run("judge", other, serve(judges(tokenizer)), "--max-new-tokens", "1000")
    assert "the model has 5000 positions: prompts are cut to 4000 tokens" in result.stderr
    assert result.exit_code == 0
    (other / "config.json").write_text('{"model_type": "llama4"}', encoding="utf-8")
    assert "how many positions" in str(run("judge", other, serve(judges(tokenizer))).exception)


def test_the_examples_of_the_help_run(place, serve, bare, tokenizer, monkeypatch):
    class Local(FakeGenerator):
        """Stands in for a model on the devices."""

        facts, names, identity, takes_messages = {}, ["local"], "local", False
        max_positions, vocab_size, assets = 16384, tokenizer.vocab_size, bare

        def __init__(self, options, progress, needs_tokenizer=True):
            assert str(options.model) == "runs/judge"
            super().__init__(tokenizer, lambda prompt, request: "hm</think>\\boxed{Assistant 1}")

        def check(self, decoding):
            pass

    monkeypatch.setattr(backend, "LazyModel", Local)
    (place / "runs").mkdir()
    (place / "runs" / "judge").symlink_to(bare)
    server = serve(lambda path, body: vllm("hm</think>\\boxed{Assistant 1}"))
    count = 0
    for verb in ("judge", "rank", "generate"):
        shown = CliRunner().invoke(_app, [verb, "--help"], terminal_width=200).stdout.replace("\\\n", " ")
        examples = re.findall(rf"^ +rrm ({verb} .*)$", shown, re.MULTILINE)
        assert len(examples) == (3 if verb == "rank" else 2)
        for example in examples:
            words = shlex.split(example.replace("http://localhost:8000", server.url))
            result = CliRunner().invoke(_app, words)
            assert result.exit_code == 0, (example, result.output, result.exception)
            count += 1
            for file in place.glob("*.jsonl.*"):
                file.unlink()
            Path(words[words.index("--out") + 1]).unlink()
    assert count == 7
    assert server.bodies
