"""Conversion and export: bitwise round trips, and destinations that appear only when they are whole."""

import json
import os
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from rrm_jax.checkpoints.assets import ASSETS, copy_assets
from rrm_jax.checkpoints.convert import convert, export, save_model
from rrm_jax.checkpoints.inspect import describe
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.models.config import from_hf
from rrm_jax.models.params import named_specs
from rrm_jax.testing import realistic_params, tiny_config, write_hf_checkpoint
from tests.checkpoints.killing import Victim, wait_for_death

CONFIG = tiny_config()


def all_tensors(directory: Path) -> dict[str, np.ndarray]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize(
    ("dtype", "tied", "shards"),
    [
        (ml_dtypes.bfloat16, False, 3),
        (ml_dtypes.bfloat16, True, 1),
        (np.float16, False, 1),
        (np.float32, True, 3),
    ],
)
def test_round_trip_is_bitwise(tmp_path, dtype, tied, shards):
    config = tiny_config(tied_embeddings=tied)
    write_hf_checkpoint(tmp_path / "hf", config, seed=1, dtype=dtype, shards=shards)
    write_word_tokenizer(tmp_path / "hf", ["a", "b"])
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": 5}')
    seen = []
    made = convert(tmp_path / "hf", tmp_path / "c", report=lambda done, total: seen.append((done, total)))
    back = export(tmp_path / "c", tmp_path / "back", max_shard_bytes=20_000)
    assert made.notes == back.notes == ()
    assert made.dtype == np.dtype(dtype).name
    assert made.parameters == config.num_parameters
    assert seen == sorted(seen)
    assert seen[-1] == (made.bytes, made.bytes)
    assert_same_bits(all_tensors(tmp_path / "hf"), all_tensors(tmp_path / "back"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        original = (tmp_path / "hf" / name).read_bytes()
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "back" / name).read_bytes() == original
    prints = {open_source(tmp_path / name).fingerprint() for name in ("hf", "c", "back")}
    assert prints == {made.fingerprint, back.fingerprint}
    assert len(prints) == 1
    if tied:
        assert "lm_head.weight" not in all_tensors(tmp_path / "back")


def test_casting_on_the_way(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", CONFIG, dtype=np.float32)
    narrow = convert(tmp_path / "hf", tmp_path / "c", "bfloat16")
    wide = export(tmp_path / "c", tmp_path / "back", np.float32)
    original, returned = all_tensors(tmp_path / "hf"), all_tensors(tmp_path / "back")
    for name, tensor in original.items():
        rounded = np.asarray(jnp.asarray(tensor).astype(jnp.bfloat16).astype(jnp.float32))
        assert returned[name].tobytes() == rounded.tobytes()
    assert (narrow.dtype, wide.dtype) == ("bfloat16", "float32")
    assert narrow.bytes * 2 == wide.bytes
    assert len({narrow.fingerprint, wide.fingerprint, open_source(tmp_path / "hf").fingerprint()}) == 3
    with pytest.raises(RrmError, match="int4"):
        convert(tmp_path / "hf", tmp_path / "d", "int4")


def test_export_says_the_dtype_and_keeps_the_rest_of_the_config(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", CONFIG, dtype=np.float32)
    hf = json.loads((tmp_path / "hf" / "config.json").read_text())
    del hf["torch_dtype"]
    hf |= {"dtype": "float32", "eos_token_id": 7, "unknown_to_us": {"a": [1]}}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(hf))
    export(tmp_path / "hf", tmp_path / "back", "bfloat16")
    told = json.loads((tmp_path / "back" / "config.json").read_text())
    assert told == hf | {"dtype": "bfloat16"}
    assert from_hf(told) == CONFIG
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"] == 7


def test_generation_config_takes_ids_from_the_tokenizer_when_config_has_none(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", CONFIG)
    write_word_tokenizer(tmp_path / "hf", ["a", "b"])
    export(tmp_path / "hf", tmp_path / "back")
    tokens = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    made = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert (made["bos_token_id"], made["eos_token_id"]) == (ids["<|begin|>"], ids["<|end|>"])


def test_a_model_without_tokenizer_converts_and_says_so(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", CONFIG)
    (note,) = convert(tmp_path / "hf", tmp_path / "c").notes
    assert "no tokenizer" in note
    assert not describe(tmp_path / "c").tokenizer


def test_assets_are_copied_byte_for_byte(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ASSETS:
        (tmp_path / "a" / name).write_bytes(name.encode() + b"\r\n\xff")
    (tmp_path / "a" / "optimizer.pt").write_bytes(b"no")
    assert copy_assets(tmp_path / "a", tmp_path / "x" / "b") == list(ASSETS)
    assert sorted(path.name for path in (tmp_path / "x" / "b").iterdir()) == sorted(ASSETS)
    assert all((tmp_path / "x" / "b" / n).read_bytes() == (tmp_path / "a" / n).read_bytes() for n in ASSETS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of writers whose save has failed
@pytest.mark.parametrize("verb", [convert, export])
def test_nothing_appears_when_it_cannot_be_finished(tmp_path, verb):
    write_hf_checkpoint(tmp_path / "hf", tiny_config(vocab_size=8192))
    dst = tmp_path / "deep" / "dst"

    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verb(tmp_path / "hf", dst, report=fail)
    assert list(dst.parent.iterdir()) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # every larger file fails, as on a full disk
    try:
        with pytest.raises(RrmError, match=r"cannot write .*dst.*: File too large"):
            verb(tmp_path / "hf", dst)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(dst.parent.iterdir()) == []
    with pytest.raises(RrmError, match=r"cannot write .*(File exists|Not a directory)"):
        verb(tmp_path / "hf", tmp_path / "hf" / "config.json" / "dst")
    verb(tmp_path / "hf", dst)
    with pytest.raises(RrmError, match="exists already"):
        verb(tmp_path / "hf", dst)


def stop_halfway(connection, verb, src: Path, dst: Path) -> None:
    def report(done: int, total: int) -> None:
        if done > total / 2:
            connection.send("half")
            wait_for_death(connection)

    verb(src, dst, report=report)


def test_a_killed_conversion_leaves_no_destination_and_can_be_run_again(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", CONFIG, dtype=ml_dtypes.bfloat16)
    verbs = {"convert": convert, "export": export}
    victims = {name: Victim(stop_halfway, verb, tmp_path / "hf", tmp_path / name) for name, verb in verbs.items()}
    for name, victim in victims.items():
        assert victim.hear() == "half"
        victim.kill()
        assert not (tmp_path / name).exists()
        (left,) = tmp_path.glob(f".{name}.*")
        with pytest.raises(RrmError, match=r"does not exist; an interrupted run left"):
            open_source(tmp_path / name)
        with pytest.raises(RrmError, match="is incomplete"):
            open_source(left)
        verbs[name](tmp_path / "hf", tmp_path / name)
        assert not left.exists()
    export(tmp_path / "convert", tmp_path / "back")
    for name in ("export", "back"):
        assert_same_bits(all_tensors(tmp_path / "hf"), all_tensors(tmp_path / name))


def test_partial_copies_are_recognised(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "c")
    largest = max((p for p in (tmp_path / "c" / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    shutil.copytree(tmp_path / "c", tmp_path / "no_manifest", ignore=shutil.ignore_patterns("rrm_checkpoint.json"))
    with pytest.raises(RrmError, match="is incomplete"):
        open_source(tmp_path / "no_manifest")
    os.truncate(largest, largest.stat().st_size - 1)
    with pytest.raises(RrmError, match=f"is damaged: .*{largest.name}"):
        open_source(tmp_path / "c")
    largest.unlink()
    with pytest.raises(RrmError, match=f"is incomplete: .*{largest.name} is missing"):
        open_source(tmp_path / "c")


def test_a_config_that_disagrees_with_the_parameters_is_refused(tmp_path):
    write_hf_checkpoint(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 65, "num_hidden_layers": 1}))
    with pytest.raises(RrmError) as raised:
        open_source(tmp_path / "c")
    assert "embedding in" in str(raised.value)
    assert "layers.1.mlp.up_kernel in" in str(raised.value)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("on_device", [True, False])
def test_save_model_writes_what_convert_writes(tmp_path, stacked, on_device):
    write_hf_checkpoint(tmp_path / "hf", CONFIG, seed=2)
    write_word_tokenizer(tmp_path / "hf", ["a"])
    made = convert(tmp_path / "hf", tmp_path / "c")
    params = realistic_params(CONFIG, seed=2, stacked=True)
    if not stacked:
        layers = [jax.tree.map(lambda x, at=at: x[at], params["layers"]) for at in range(CONFIG.num_layers)]
        params = {**params, "layers": layers}
    facts = {"judge_template_sha256": "ab", "name": "ü"}
    saved = save_model(tmp_path / "m", CONFIG, jax.device_put(params) if on_device else params, tmp_path / "hf", facts)
    assert saved.fingerprint == made.fingerprint
    source, reference = open_source(tmp_path / "m"), open_source(tmp_path / "c")
    assert source.facts == facts
    for names, spec in named_specs(CONFIG):
        assert source.read(names, spec).tobytes() == reference.read(names, spec).tobytes()
    export(tmp_path / "m", tmp_path / "back")
    assert_same_bits(all_tensors(tmp_path / "hf"), all_tensors(tmp_path / "back"))
    assert open_source(tmp_path / "back").facts == facts
    with pytest.raises(RrmError, match="another model"):
        save_model(tmp_path / "n", tiny_config(vocab_size=32), params, tmp_path / "hf", {})


def test_save_model_without_assets_makes_a_config(tmp_path):
    params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), realistic_params(CONFIG))
    save_model(tmp_path / "m", CONFIG, params, None, {})
    source = open_source(tmp_path / "m")
    assert source.config == CONFIG
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "bfloat16"
