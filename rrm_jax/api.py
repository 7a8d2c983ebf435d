"""A model's directory as a judge, in one call."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE
from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.template import as_trained, check_template, tokens_as_trained
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.sampling.opening import sampler_of
from rrm_jax.sampling.protocol import Decoding
from rrm_jax.sampling.sampler import position_limit, room_for_prompt


def open_judge(
    model: str | Path,
    *,
    template: str | Path | None = None,
    thinking: bool | None = None,
    temperature: float = 0.6,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    dtype: Any = None,
    **options: Any,
) -> Judge:
    """The judge in a directory: a Hugging Face model, a converted checkpoint, or a training run. On all devices.

    `template` (a packaged name or a file), `thinking` and `max_new_tokens` are, where they are None, what the model was
    trained with here; else "default", True and 8,192. `dtype` None: float32 on CPU, else bfloat16. `batch_size`
    sequences are decoded together. `options` are a `Judge`'s: votes, seed, order, max_prompt_tokens, thinking_budget,
    constrain_verdict.

    Warns where the template is not the one that the weights were trained with. Raises RrmError for a path that is no
    model, has no tokenizer, or has no room for `max_new_tokens` after a prompt.
    """
    compute = jnp.dtype(dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    source = open_source(model)  # what cannot be is found before a weight is read
    tokenizer = Tokenizer.load(source.assets)
    shown, thinks = as_trained(source.assets / JUDGE_TEMPLATE, source.facts, template, thinking)
    if warning := check_template(shown, source.facts, [Path(model).resolve().name], thinks):
        warnings.warn(warning, stacklevel=2)
    most = tokens_as_trained(source.facts) if max_new_tokens is None else max_new_tokens
    room = room_for_prompt(position_limit(source.config), most, f"max_new_tokens {most}")
    options["max_prompt_tokens"] = min(options.get("max_prompt_tokens", 4096), room)
    mesh = make_mesh()
    loaded = load_model(model, mesh=mesh, dtype=compute)
    return Judge(
        sampler_of(loaded, None if mesh.size == 1 else mesh, compute, batch_size),
        tokenizer,
        shown,
        Decoding(temperature, max_new_tokens=most),
        thinking=thinks,
        model=f"{loaded.fingerprint} in {compute.name}",
        **options,
    )
