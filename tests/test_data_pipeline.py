"""Real answers, by the commands of docs/data.md, to batches of token ids on two processes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.data.pairs import open_pairs
from rrm_jax.data.prepared import open_prepared
from rrm_jax.data.stream import PairStream, Part
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.template import load_template
from rrm_jax.training.feed import Feed
from rrm_jax.training.token_cache import Encode
from tests.training.test_data_feed import digest, joined, shares

ROWS = 150
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def rrm(*words: object, exit_code: int = 0) -> str:
    result = CliRunner().invoke(_app, [str(word) for word in words])
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result.stdout


@pytest.mark.thorough
def test_from_answers_to_token_ids(real_data: Path, tmp_path: Path):
    published = (real_data / "gsm8k" / "example_model_solutions.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    rows = [json.loads(line) for line in published]
    with open(tmp_path / "answers.jsonl", "w", encoding="utf-8") as file:
        for at, row in enumerate(rows):
            answer = row["ground_truth"].rpartition("A:")[2].strip()
            solutions = [row[model]["solution"] for model in MODELS]
            about = {"id": f"g{at}", "source": "gsm8k", "query": row["question"], "answer": answer}
            file.write(json.dumps(about | {"responses": solutions}) + "\n")
    mixed = sum(len({row[model]["is_correct"] for model in MODELS}) == 2 for row in rows)
    said = rrm(
        "data", "synthesize", "--candidates", tmp_path / "answers.jsonl", "--verifier", "numeric",
        "--out", tmp_path / "gsm8k.jsonl",
    )  # fmt: skip
    assert f"questions kept: {mixed} of {ROWS}" in said
    llmbar = real_data / "llmbar" / "llmbar-natural.json"
    rrm("data", "convert", llmbar, "--to", "prepared", "--source", "llmbar", "--out", tmp_path / "llmbar")
    panda = real_data / "pandalm" / "testset-v1.json"  # in six of its rows a response is true, not text
    rrm("data", "convert", panda, "--to", "rrm", "--out", tmp_path / "panda.jsonl", exit_code=1)

    files = [tmp_path / "gsm8k.jsonl", tmp_path / "llmbar", tmp_path / "panda.jsonl"]
    assert len(open_prepared(files[1])) == 100
    directory = real_data / "tokenizers" / "deepseek_r1_distill_qwen"
    shared = shares(2, "default", directory, 4096, files)
    parts = [Part(open_pairs(file, print), len(files) - at) for at, file in enumerate(files)]
    assert len(parts[0].rows) == mixed
    stream = PairStream(parts, 5)
    tokenizer = Tokenizer.load(directory)
    shown = Feed(stream, Encode(load_template("default"), tokenizer, 4096, True)).take(16, 24)
    assert joined(shared) == [f"{asked.row.id}:{asked.row.label}:{digest(asked.prompt_ids)}" for asked in shown]
    assert {stream.place(16 + at).part for at in range(24)} == {0, 1, 2}
    for pair, prompt_ids, _ in shown:
        text = tokenizer.decode(prompt_ids)
        assert 0 <= text.find(pair.query) < text.find(pair.response_1) or not pair.response_1
        assert text.find(pair.response_1) <= text.rfind(pair.response_2)
