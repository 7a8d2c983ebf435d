"""The shapes of the models that the paper's judges were trained from, for estimates without a checkpoint.

They are never loaded with: a checkpoint's own config.json decides what it is.
"""

from rrm_jax.models.config import DecoderConfig, Rope

# DeepSeek-R1-Distill-Qwen (2501.12948), by their config.json; RRM-7B and RRM-32B have the same shapes.
PAPER_MODELS: dict[str, DecoderConfig] = {
    "1.5b": DecoderConfig(
        vocab_size=151_936, hidden_size=1536, num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128,
        intermediate_size=8960, max_positions=131_072,
    ),
    "7b": DecoderConfig(
        vocab_size=152_064, hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128,
        intermediate_size=18_944, max_positions=131_072,
    ),
    "14b": DecoderConfig(
        vocab_size=152_064, hidden_size=5120, num_layers=48, num_heads=40, num_kv_heads=8, head_dim=128,
        intermediate_size=13_824, max_positions=131_072, rms_eps=1e-5, rope=Rope(1e6),
    ),
    "32b": DecoderConfig(
        vocab_size=152_064, hidden_size=5120, num_layers=64, num_heads=40, num_kv_heads=8, head_dim=128,
        intermediate_size=27_648, max_positions=131_072, rms_eps=1e-5, rope=Rope(1e6),
    ),
}  # fmt: skip
