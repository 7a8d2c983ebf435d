"""`rrm generate` from the outside: files in, files out, exit codes, resumption."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import ASSISTANT, BOS, write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.sampling import sampler as sampling
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.testing import realistic_params, tiny_config, write_hf_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generator")
    vocabulary = write_word_tokenizer(directory, string.printable)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary))
    return directory


@pytest.fixture
def generate(tmp_path: Path, model: Path):
    """Runs `rrm generate` on rows: `generate(rows, *options)` → the result; exceptions that are not ours are raised."""

    def run(rows, *options: str, using: Path = model):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        arguments = ["generate", "--model", str(using), "--prompts", str(prompts), "--out", str(tmp_path / "out.jsonl")]
        arguments += ["--batch-size", "8", "--mesh", "fsdp=1,data=-1"]
        result = CliRunner().invoke(_app, [*arguments, "--max-new-tokens", "12", *options])
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit)):
            raise result.exception
        return result

    return run


@pytest.fixture
def out(tmp_path: Path):
    def read() -> dict[tuple[str, int], dict]:
        lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        rows = {(row["id"], row["sample"]): row for row in map(json.loads, lines)}
        assert len(rows) == len(lines), "a row appears twice"
        return rows

    return read


ROWS = [{"id": 1, "prompt": "2 + 2 ="}, {"id": "two", "prompt_ids": [5, 6, 7]}, {"id": "3", "prompt": BOS + "hi"}]


def test_completes_text_and_ids(generate, out, model, tmp_path):
    result = generate(ROWS, "--n", "2", "--temperature", "0.9", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "completions: 6 (6 drawn now) of 3 prompts" in result.stdout
    rows = out()
    assert set(rows) == {(name, sample) for name in ("1", "two", "3") for sample in (0, 1)}
    # The same through the library: text with one BOS in front, ids as they are.
    tokenizer = Tokenizer.load(model)
    prompts = {
        "1": [tokenizer.bos_id, *tokenizer.encode_control("2 + 2 =")],
        "two": [5, 6, 7],
        "3": [tokenizer.bos_id, *tokenizer.encode_control("hi")],
    }
    how = Decoding(0.9, max_new_tokens=12, stop_ids=tokenizer.stop_ids)
    config = tiny_config(vocab_size=tokenizer.vocab_size)
    requests = [Request(name, tuple(ids), how, sample, 3) for name, ids in prompts.items() for sample in (0, 1)]
    for completion in Sampler(config, realistic_params(config), batch_size=8).generate(requests):
        row = rows[completion.request.id, completion.request.sample]
        assert tuple(row["token_ids"]) == completion.token_ids
        assert row["text"] == tokenizer.decode(completion.token_ids)
        assert row["finish_reason"] == completion.finish_reason
        np.testing.assert_allclose(row["logprobs"], completion.logprobs, atol=1e-4)
    facts = json.loads((tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert facts["seed"] == 3
    assert facts["config"]["decoding"]["temperature"] == 0.9
    assert facts["config"]["decoding"]["stop_ids"] == list(tokenizer.stop_ids)
    assert facts["inputs"]["prompts"]["path"].endswith("prompts.jsonl")


def test_control_tokens_of_a_prompt_are_control_tokens(generate, out):
    generate([{"id": "x", "prompt": ASSISTANT + "!"}, {"id": "y", "prompt": "assistant!"}], "--temperature", "0")
    rows = out()
    assert rows["x", 0]["content"] != rows["y", 0]["content"]
    assert set(rows["x", 0]["logprobs"]) == {0.0}


def test_goes_on_where_it_was_killed(generate, out, tmp_path, monkeypatch):
    whole = generate(ROWS, "--n", "2", "--temperature", "1.0")
    assert whole.exit_code == 0
    expected = out()
    log = tmp_path / "out.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed in the middle of the third row
    again = generate(ROWS, "--n", "2", "--temperature", "1.0")
    assert "completions: 6 (4 drawn now)" in again.stdout
    assert {key: row["token_ids"] for key, row in out().items()} == {
        key: row["token_ids"] for key, row in expected.items()
    }
    more = generate(ROWS, "--n", "3", "--temperature", "1.0")
    assert "completions: 9 (3 drawn now)" in more.stdout
    monkeypatch.setattr(sampling, "Sampler", None)  # nothing is left to do, so no model is opened
    assert generate(ROWS, "--n", "3", "--temperature", "1.0").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0.5"], "decoding: was"),
        (["--seed", "9"], "seed: was 0, is now 9"),
        (["--dtype", "bfloat16"], "in bfloat16"),
    ],
)
def test_other_settings_are_not_mixed_into_one_file(generate, options, message):
    assert generate(ROWS).exit_code == 0
    result = generate(ROWS, *options)
    assert message in str(result.exception)


def test_other_prompts_under_the_same_id_are_refused(generate, tmp_path):
    assert generate(ROWS).exit_code == 0
    assert "completes another prompt" in str(generate([ROWS[0] | {"prompt": "3 + 3 ="}, *ROWS[1:]]).exception)
    (tmp_path / "out.jsonl.run.json").unlink()
    assert "is not this job's" in str(generate(ROWS).exception)


def test_unusable_rows_are_passed_over_or_refused(generate, out):
    bad = [
        {"id": "long", "prompt": "x" * 130},
        {"id": "outside", "prompt_ids": [10_000]},
        {"id": "both", "prompt": "x", "prompt_ids": [1]},
        {"id": 1, "prompt": "again"},
    ]
    result = generate([*ROWS, *bad])
    assert result.exit_code == 1
    assert "4 row(s)" in result.stderr
    assert "131 tokens, and at most 116 leave room" in result.stderr
    assert "token id 10000 is outside the model's vocabulary" in result.stderr
    assert {key[0] for key in out()} == {"1", "two", "3"}
    assert "131 tokens" in str(generate([*ROWS, *bad], "--strict").exception)


def test_settings_that_cannot_work_are_refused_before_any_weight_is_read(generate, monkeypatch):
    monkeypatch.setattr(sampling, "Sampler", None)
    assert "leaves no room" in str(generate(ROWS, "--max-new-tokens", "128").exception)
    assert "top_p must be in (0, 1]" in str(generate(ROWS, "--top-p", "0").exception)
    assert "--mesh" in str(generate(ROWS, "--mesh", "rows=2").exception)


def test_a_model_without_tokenizer_completes_ids(generate, out, tmp_path):
    bare = tmp_path / "bare"
    write_hf_checkpoint(bare, tiny_config(vocab_size=8))
    config = json.loads((bare / "config.json").read_text(encoding="utf-8"))
    (bare / "config.json").write_text(json.dumps(config | {"eos_token_id": [4, 5]}), encoding="utf-8")
    rows = [{"id": f"r{i}", "prompt_ids": [i, 1]} for i in range(8)]
    result = generate([*rows, ROWS[0]], "--temperature", "2", using=bare)
    assert result.exit_code == 1
    assert "has no tokenizer" in result.stderr
    completions = out().values()
    assert {row["text"] for row in completions} == {None}
    assert {row["finish_reason"] == "stop" for row in completions} == {True, False}
    for row in completions:
        assert not {4, 5} & set(row["token_ids"][:-1])
        assert (row["token_ids"][-1] in (4, 5)) == (row["finish_reason"] == "stop")
