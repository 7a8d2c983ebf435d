"""`rrm_jax.open_judge`: what the command line makes of the same directory."""

import json
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rrm_jax
from rrm_jax.cli.main import _app
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.quickstart import world
from rrm_jax.testing import tiny_config, write_hf_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiles")
PAIRS = [rrm_jax.Pair(str(at), f"question {at}", f"good {at}", f"bad {at}") for at in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Random weights, a token a character, and the template of a judge that was trained here."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = write_word_tokenizer(directory, list(dict.fromkeys([*world.WORDS, *string.printable])))
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary, max_positions=512))
    (directory / "judge_template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    return directory


def test_it_judges_and_ranks_as_the_commands_do(model, tmp_path, monkeypatch):
    monkeypatch.setenv("RRM_COMPILATION_CACHE", "off")
    rows = [{"id": p.id, "query": p.query, "response_1": p.response_1, "response_2": p.response_2} for p in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "judged.jsonl"
    words = ["judge", "--model", model, "--pairs", tmp_path / "pairs.jsonl", "--out", out, "--max-new-tokens", 16]
    done = CliRunner().invoke(_app, [*map(str, words), "--votes", "2"])
    assert done.exit_code == 0, done.output
    judge = rrm_jax.open_judge(model, votes=2, max_new_tokens=16)
    expected = {row["id"]: row for row in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    for judgment in judge.judge(PAIRS):
        assert judgment.to_row() == expected[judgment.pair.id]
    best = rrm_jax.rank(judge, "question 0", ["good 0", "bad 0"], "knockout").best
    assert best in (0, 1)


def test_what_cannot_be_is_said(model, tmp_path):
    with pytest.raises(RrmError, match=r"max_new_tokens 512 leaves no room .* the model has .* positions; give fewer"):
        rrm_jax.open_judge(model, max_new_tokens=512)
    with pytest.raises(RrmError, match="max_new_tokens 8192 leaves no room"):  # not trained here
        rrm_jax.open_judge(model)
    with pytest.raises(RrmError, match="nothing"):
        rrm_jax.open_judge(tmp_path / "nothing")
    with pytest.warns(UserWarning, match="were trained"):
        rrm_jax.open_judge(_named(model, tmp_path / "RRM-7B"), max_new_tokens=16)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rrm_jax.nothing


def _named(model: Path, as_: Path) -> Path:
    """The same directory under the name of released weights, whose template it does not have."""
    as_.mkdir()
    for file in model.iterdir():
        (as_ / file.name).hardlink_to(file)
    return as_
