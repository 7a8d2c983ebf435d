"""Reading damaged Hugging Face directories, and writing ones that the safetensors library reads."""

import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rrm_jax.checkpoints.assets import read_config
from rrm_jax.checkpoints.hf import DTYPES, INDEX, HfWeights, cast, parse_dtype, read_header, write_safetensors
from rrm_jax.errors import RrmError
from rrm_jax.models.params import named_specs
from rrm_jax.testing import realistic_weight, tiny_config, write_hf_checkpoint

CONFIG = tiny_config(num_layers=1)
K_BIAS = "model.layers.0.self_attn.k_proj.bias"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_hf_checkpoint(tmp_path / "model", CONFIG, dtype=ml_dtypes.bfloat16)
    return tmp_path / "model"


def rewrite(model: Path, change) -> None:
    """Applies `change` to the dict of the model's tensors."""
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def problems(model: Path) -> str:
    with pytest.raises(RrmError) as raised:
        HfWeights(model, read_config(model))
    return str(raised.value)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_reads_every_tensor_and_samples_its_rows(tmp_path, shards, dtype):
    write_hf_checkpoint(tmp_path, CONFIG, seed=3, dtype=dtype, shards=shards)
    weights = HfWeights(tmp_path, CONFIG)
    for _, spec in named_specs(CONFIG):
        expected = realistic_weight(spec, 3).astype(dtype)
        read = weights.read(spec)
        assert read.shape == spec.shape
        assert read.dtype == expected.dtype == weights.dtype(spec)
        assert read.tobytes() == expected.tobytes()
        matrix = expected.reshape(1, -1) if len(spec.hf_shape) == 1 else expected.reshape(spec.hf_shape)
        sampled = np.frombuffer(weights.sample(spec), expected.dtype).reshape(-1, matrix.shape[1])
        assert sampled[0].tobytes() == matrix[0].tobytes()
        assert sampled[-1].tobytes() == matrix[-1].tobytes()


def test_lists_missing_extra_misshapen_and_wrong_dtype_together(model):
    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.7.extra"] = np.zeros(3, np.float32)
        tensors[K_BIAS] = np.zeros((2, 9), np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)

    rewrite(model, damage)
    message = problems(model)
    file = re.escape(str(model / "model.safetensors"))
    assert "model.norm.weight is missing" in message
    assert re.search(f"model.layers.7.extra in {file} is not a parameter", message)
    assert re.search(rf"{K_BIAS} in {file}: shape \[2, 9\], config.json asks for \[16\]", message)
    assert re.search(f"lm_head.weight in {file}: dtype I8 is not one of", message)


def test_truncated_file_names_the_tensors_that_are_cut(model):
    file = model / "model.safetensors"
    last = max(read_header(file)[0].items(), key=lambda item: item[1].start)[0]
    os.truncate(file, file.stat().st_size - 1)
    assert re.search(rf"{re.escape(last)} in {re.escape(str(file))}: truncated", problems(model))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cut short"),
        (b"abc", "cut short"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "header should have 1099511627776 bytes"),
        ((5).to_bytes(8, "little") + b"nope!", "header is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ((14).to_bytes(8, "little") + b'{"a": "wrong"}', "header entry 'wrong' is not valid"),
    ],
)
def test_files_that_are_not_safetensors(model, content, said):
    (model / "model.safetensors").write_bytes(content)
    message = problems(model)
    assert str(model / "model.safetensors") in message
    assert said in message


def test_sizes_must_make_the_shape(model):
    file = model / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[K_BIAS]["data_offsets"][1] -= 2
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert f"{K_BIAS} in {file}: 30 bytes do not make BF16 [16]" in problems(model)


def test_index_problems(tmp_path):
    write_hf_checkpoint(tmp_path, CONFIG, shards=3)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / "model-00002-of-00003.safetensors").rename(tmp_path / "elsewhere")
    assert "names model-00002-of-00003.safetensors, which" in problems(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "model-00002-of-00003.safetensors")
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    message = problems(tmp_path)
    assert "lm_head.weight is in" in message
    assert "ghost" in message
    for bad in ("[", '{"weight_map": 3}', '{"weight_map": {"a": "../up.safetensors"}}'):
        (tmp_path / INDEX).write_text(bad)
        assert "is not a safetensors index" in problems(tmp_path)


def test_pickled_weights_are_never_read(model):
    (model / "model.safetensors").unlink()
    assert "no *.safetensors file" in problems(model)
    (model / "pytorch_model.bin").write_bytes(b"")
    assert "pickled" in problems(model)


def test_untied_head_missing_says_why(model):
    rewrite(model, lambda tensors: tensors.pop("lm_head.weight"))
    assert "does not say that embeddings are tied" in problems(model)


def test_a_tied_models_own_head_must_equal_the_embedding(tmp_path):
    write_hf_checkpoint(tmp_path, tiny_config(tied_embeddings=True))
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    notes = HfWeights(tmp_path, read_config(tmp_path)).notes
    assert any("ignored lm_head.weight" in note for note in notes)

    def differ(tensors):
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite(tmp_path, differ)
    assert "lm_head.weight in" in problems(tmp_path)


def test_rotary_buffers_of_old_files_are_ignored(model):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(model, lambda tensors: tensors.update({name: np.ones(4, np.float32)}))
    assert any("inv_freq" in note for note in HfWeights(model, CONFIG).notes)


def test_written_shards_load_in_the_safetensors_library(tmp_path):
    specs = {spec.hf: spec for _, spec in named_specs(CONFIG)}
    dtypes = dict(zip(specs, [*DTYPES.values()] * len(specs), strict=False))  # all three, mixed
    expected = {name: realistic_weight(spec).astype(dtypes[name]) for name, spec in specs.items()}
    planned = {names: (spec, dtypes[spec.hf]) for names, spec in named_specs(CONFIG)}
    limit = 8000
    write_safetensors(tmp_path, planned, lambda names: expected[planned[names][0].hf], limit)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert index["weight_map"].keys() == specs.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for file in files:
        entries, wrong = read_header(file)
        assert not wrong
        assert sum(entry.size for entry in entries.values()) <= limit or len(entries) == 1
        for name, tensor in load_file(file).items():
            assert index["weight_map"][name] == file.name
            assert tensor.shape == specs[name].hf_shape
            assert tensor.dtype == dtypes[name]
            assert tensor.tobytes() == expected[name].tobytes()


def test_cast_rounds_to_nearest_and_refuses_to_overflow():
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -65519, np.inf, np.nan], np.float32)
    halves = cast(values, parse_dtype("bfloat16"), "x").astype(np.float32)
    assert halves[:2].tolist() == [1.0, 1 + 2 * 2**-7]  # ties go to even
    assert cast(values, parse_dtype(np.float16), "x")[2] == -65504
    assert np.isinf(cast(values, parse_dtype(np.float16), "x")[3])
    with pytest.raises(RrmError, match="tensor_x holds 65536"):
        cast(np.array([0, -65536], ml_dtypes.bfloat16), np.dtype(np.float16), "tensor_x")
    with pytest.raises(RrmError, match="'int8' is not one of bfloat16"):
        parse_dtype("int8")
