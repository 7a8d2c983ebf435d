"""Reading and writing `config.json`. What each value does is compared with transformers in `test_parity`."""

import json

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.models.config import ConfigError, Rope, from_hf, to_hf
from rrm_jax.models.params import abstract_params
from rrm_jax.testing import tiny_config

# https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-7B, whose shape RRM-7B keeps
R1_7B = {
    "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
    "max_position_embeddings": 131072, "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
    "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


def test_the_released_7b_shape():
    config = from_hf(R1_7B)
    assert (config.head_dim, config.num_kv_heads, config.rms_eps, config.rope) == (128, 4, 1e-6, Rope(10_000.0))
    assert (config.sliding_window, config.window_layers, config.tied_embeddings) == (None, (), False)
    assert config.num_parameters == 7_615_616_512  # what its safetensors index adds up to, in elements


def test_the_parameter_count_is_that_of_the_declared_parameters():
    for config in (tiny_config(), tiny_config(tied_embeddings=True, head_dim=16, num_layers=3)):
        tree = abstract_params(config, "float32", stacked=True)
        assert config.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(tree))


ropes = st.one_of(
    st.builds(Rope, theta=st.sampled_from([1e4, 1e6])),
    st.builds(Rope, theta=st.just(1e4), kind=st.sampled_from(["linear", "dynamic"]), factor=st.floats(1, 8)),
    st.builds(
        Rope,
        kind=st.just("yarn"),
        factor=st.floats(1, 8),
        original_max_positions=st.integers(8, 4096),
        attention_factor=st.none() | st.floats(0.5, 2),
        beta_fast=st.floats(8, 64),
        beta_slow=st.floats(0.5, 4),
        mscale=st.none() | st.floats(0.5, 2),
        mscale_all_dim=st.none() | st.floats(0.5, 2),
        truncate=st.booleans(),
    ),
)
windows = st.just((None, ())) | st.tuples(
    st.integers(1, 64), st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any)
)


@given(ropes, windows, st.booleans(), st.sampled_from([(4, 2), (4, 4), (6, 2)]), st.sampled_from([8, 16]))
def test_writing_and_reading_gives_the_same_config(rope, window, tied, heads, head_dim):
    sliding_window, window_layers = window
    config = tiny_config(
        num_layers=3, rope=rope, sliding_window=sliding_window, window_layers=window_layers, tied_embeddings=tied,
        num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, rms_eps=1e-5, initializer_range=0.01,
    )  # fmt: skip
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_transformers_reads_what_is_written(tmp_path):
    from transformers import AutoConfig

    rope = Rope(1e6, "yarn", 4.0, original_max_positions=32)
    config = tiny_config(rope=rope, sliding_window=8, window_layers=(False, True), head_dim=16)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.layer_types == ["full_attention", "sliding_attention"]
    assert (theirs.sliding_window, theirs.head_dim) == (8, 16)
    assert theirs.rope_parameters["rope_theta"] == 1e6
    assert theirs.rope_parameters["rope_type"] == "yarn"
    # and what transformers 5 then saves, in its own generation of keys, is read as the same
    assert from_hf(theirs.to_dict()) == config


def test_defaults_are_those_of_transformers():
    from transformers import Qwen2Config

    assert from_hf(SMALL) == from_hf(Qwen2Config(**SMALL).to_dict())
    assert from_hf(SMALL | {"num_key_value_heads": None}).num_kv_heads == 4


def test_rope_scaling_wins_over_rope_parameters_and_the_theta_beside_it_counts():
    both = {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}
    assert from_hf(SMALL | both | {"rope_theta": 5e5}).rope == Rope(5e5, "linear", 2.0)
    assert from_hf(SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}).rope == Rope(7e5)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, (False, False, True)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}, ()),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, ()),
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, ()),
        ({"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"] * 3}, ()),
    ],
)
def test_which_layers_are_windowed(changes, layers):
    config = from_hf(SMALL | changes)
    assert (config.sliding_window, config.window_layers) == (8 if layers else None, layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"vocab_size": None, "hidden_size": None}, "lacks vocab_size, hidden_size"),
        ({"hidden_size": "32"}, "hidden_size is '32'; it must be a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"max_position_embeddings": -1}, "max_positions is -1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "llama3", "factor": 8}}, "'llama3' is not one of default, linear, dynamic, yarn"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs a factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "nested by layer type"),
        ({"layer_types": ["chunked_attention"] * 3}, "unsupported .*chunked_attention"),
        (
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"]},
            "layer_types has 1 entries for 3 layers",
        ),
        ({"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0}, "sliding_window is 0"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(SMALL | changes)


def test_a_window_without_layers_is_refused():
    with pytest.raises(ConfigError, match="sliding_window is 8, but 0 layers are windowed"):
        tiny_config(sliding_window=8)
