"""A model's directory as a sampler on this process's devices."""

from pathlib import Path
from typing import Any

from rrm_jax.checkpoints.load import load_model
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.models.attention import choose_backend
from rrm_jax.models.decoder import Options
from rrm_jax.parallel.mesh import make_mesh, partition_spec
from rrm_jax.sampling.sampler import Sampler


def open_sampler(path: str | Path, dtype: Any, batch_size: int) -> tuple[Sampler, Tokenizer]:
    """Over all devices, weights whole on each. Raises RrmError for what is no model, or has no tokenizer."""
    mesh = make_mesh()
    model = load_model(path, mesh=mesh, dtype=dtype)
    options = Options(dtype, choose_backend(model.config, dtype).backend, spec=partition_spec)
    return Sampler(model.config, model.params, options, mesh, batch_size), Tokenizer.load(model.assets)
