"""`rrm study` from the outside: a fake model on this machine, and the same answers from a server."""

import functools
import json
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.sampling.remote import RemoteGenerator
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from tests.judging.fake_generator import FakeGenerator, prefers
from tests.sampling.stub_server import QUICK, stub_servers, vllm

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random models with a tokenizer of one token a character."""
    found = {}
    for seed, name in enumerate(("good", "bad")):
        found[name] = tmp_path_factory.mktemp(name)
        vocabulary = write_word_tokenizer(found[name], string.printable)
        write_hf_checkpoint(found[name], tiny_config(vocab_size=vocabulary, max_positions=8192), seed=seed)
    return found


@pytest.fixture
def config(tmp_path: Path, models: dict[str, Path]) -> Path:
    rows = [
        {"id": str(at), "query": f"q{at}", "response_1": "good", "response_2": "bad", "label": 1} for at in range(6)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judges = {name: {"model": str(path), "thinking": True, "max_new_tokens": 64} for name, path in models.items()}
    path = tmp_path / "reasoning.yaml"
    path.write_text(
        f"output: {tmp_path / 'out'}\nbaseline: bad\nresamples: 100\npairs: {tmp_path / 'pairs.jsonl'}\n"
        f"judges: {json.dumps(judges)}\n"
    )
    return path


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield from stub_servers()


def study(*arguments: str | Path):
    done = CliRunner().invoke(_app, ["study", "reasoning", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, (RrmError, SystemExit)):
        raise done.exception
    return done


def scores(output: Path) -> list[dict]:
    return json.loads((output / "data.json").read_text())["found"]["scores"]


def test_each_judge_is_its_own_model_and_a_server_gives_the_same_study(config, models, serve, monkeypatch, tmp_path):
    answers, opened = {models["good"]: prefers("good"), models["bad"]: prefers("bad")}, []

    def open_model(options, show):
        opened.append(options.model)
        return FakeGenerator(Tokenizer.load(options.model), answers[options.model])

    monkeypatch.setattr(loading, "open_model", open_model)
    done = study(config)
    assert done.exit_code == 0, done.output
    assert opened == [models["good"], models["bad"]]
    assert "data.json, table.md, figure.png, run.json" in done.stdout
    here = scores(tmp_path / "out")
    assert here[0]["accuracy"]["estimate"] == 1
    assert (tmp_path / "out" / "figure.png").is_file()
    assert study(config).exit_code == 0
    assert len(opened) == 2  # a study that is done needs no model

    monkeypatch.setattr("rrm_jax.sampling.remote.RemoteGenerator", functools.partial(RemoteGenerator, patience=QUICK))
    tokenizer = Tokenizer.load(models["good"])

    def answer(path, body):
        text = answers[models[body["model"]]](tokenizer.decode(body["prompt"]), None)
        return vllm(text, [*tokenizer.encode_control(text), tokenizer.eos_id])

    server = serve(answer)
    there = [f"judges.{name}.{key}={value}" for name in models for key, value in
             (("backend", server.url), ("backend_model", name))]  # fmt: skip
    assert study(config, f"output={tmp_path / 'there'}", *there).exit_code == 0
    assert [body["model"] for body in server.bodies].count("good") == 12
    assert scores(tmp_path / "there") == here


def test_malformed_rows_are_told_by_the_exit_code(config, models, monkeypatch, tmp_path):
    with open(tmp_path / "pairs.jsonl", "a") as file:
        file.write("{}\n")
    monkeypatch.setattr(
        loading, "open_model", lambda options, show: FakeGenerator(Tokenizer.load(options.model), prefers("good"))
    )
    done = study(config)
    assert done.exit_code == 1
    assert "1 row(s) that are malformed, or that a judge could not judge, were skipped" in done.stderr


def test_what_cannot_be(config, tmp_path):
    assert "there is no file" in str(study(config, f"pairs={tmp_path / 'gone.jsonl'}").exception)
    assert "unknown key" in str(study(config, "judge.model=x").exception)
