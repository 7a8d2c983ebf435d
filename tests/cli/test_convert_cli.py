"""`rrm convert`, `rrm export` and `rrm inspect` from the outside."""

import json
import logging
import sys

import ml_dtypes
import pytest

from rrm_jax.cli.export import parse_size
from rrm_jax.cli.main import app
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.testing import tiny_config, write_hf_checkpoint


@pytest.fixture
def rrm(monkeypatch, capsys):
    """Runs a command line: `rrm(*arguments)` → (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # the verbs set it; put back afterwards
    monkeypatch.setattr(logging.getLogger("absl"), "level", logging.getLogger("absl").level)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rrm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def hf(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", tiny_config(), dtype=ml_dtypes.bfloat16)
    return tmp_path / "hf"


def test_there_and_back(rrm, hf, tmp_path):
    write_word_tokenizer(hf, ["a"])
    code, out, err = rrm("convert", hf, tmp_path / "c")
    assert (code, err) == (0, "")
    assert "27 tensors, 22,816 parameters, 0.00 GB of bfloat16" in out
    code, out, _ = rrm("inspect", tmp_path / "c", "--tensors")
    assert code == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(("config:", "made", "chat")))
    assert rows["kind"] == "converted checkpoint"
    assert rows["dtype"] == "bfloat16"
    assert rows["tokenizer"] == "yes"
    assert rows["model.embed_tokens.weight"] == "bfloat16  [64, 32]"
    assert "chat template" in out
    assert "tokenizer_config.json" in out
    code, out, _ = rrm("export", tmp_path / "c", tmp_path / "back", "--dtype", "float32", "--max-shard-size", "40kB")
    assert code == 0
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) == 3
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float32"


def test_wrong_input_exits_2_with_one_message(rrm, hf, tmp_path):
    for arguments, said in (
        (("convert", tmp_path / "nowhere", tmp_path / "c"), "nowhere does not exist"),
        (("convert", hf, tmp_path / "c", "--dtype", "int8"), "'int8' is not one of bfloat16, float16, float32"),
        (("convert", hf, hf), "exists already"),
        (("convert", hf, "."), "exists already"),
        (("export", hf, tmp_path / "c", "--max-shard-size", "big"), "'big' is not a size such as 5GB"),
        (("inspect", tmp_path), "is not a model"),
    ):
        code, out, err = rrm(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert said in err
    assert not (tmp_path / "c").exists()


def test_a_missing_tokenizer_is_told(rrm, hf, tmp_path):
    code, _, err = rrm("convert", hf, tmp_path / "c")
    assert code == 0
    assert err.startswith("note: ")
    assert "no tokenizer" in err


def test_sizes():
    assert [parse_size(text) for text in ("5GB", "1.5 mib", "12", "2kB")] == [5 * 10**9, 1_572_864, 12, 2000]
    for text in ("", "0", "2k", "-1GB", "5XB", "GB", "1e9"):
        with pytest.raises(RrmError, match="is not a size"):
            parse_size(text)
