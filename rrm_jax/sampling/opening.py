"""A model's directory as a sampler on this process's devices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from rrm_jax.checkpoints.load import LoadedModel, load_model
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.models.attention import choose_backend
from rrm_jax.models.decoder import Options
from rrm_jax.parallel.mesh import make_mesh, partition_spec, platform_of
from rrm_jax.sampling.sampler import Sampler


def sampler_of(
    model: LoadedModel, mesh: Mesh | None, dtype: Any, batch_size: int,
    report: Callable[[str], None] = lambda message: None, **how: Any,
) -> Sampler:  # fmt: skip
    """A model that was loaded in `dtype` onto `mesh` (None: onto one device); `report` hears which attention it runs.
    `how` is what a `Sampler` takes beside."""
    choice = choose_backend(model.config, dtype, None if mesh is None else platform_of(mesh))
    report(str(choice))
    options = Options(dtype, choice.backend, spec=None if mesh is None else partition_spec)
    return Sampler(model.config, model.params, options, mesh, batch_size, **how)


def open_sampler(path: str | Path, dtype: Any, batch_size: int) -> tuple[Sampler, Tokenizer]:
    """Over all devices, weights whole on each. Raises RrmError for what is no model, or has no tokenizer."""
    mesh = make_mesh()
    model = load_model(path, mesh=mesh, dtype=dtype)
    return sampler_of(model, mesh, dtype, batch_size), Tokenizer.load(model.assets)
