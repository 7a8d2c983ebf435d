"""`rrm data tokenize`: the token ids of a training config's prompts, made before the run that reads them."""

from rrm_jax.cli.options import ConfigFile, Overrides


def command(
    config: ConfigFile,
    overrides: Overrides = None,
) -> None:
    """Tokenise all pairs that a training config trains on, once, for runs to read from `data.token_cache`.

    Both orders of every pair become the prompts that the run shows, cut to fit as it would. Each part of a mix has its
    own cache, named by what decides its ids: the pairs, the tokenizer, the template, the longest prompt, thinking or
    not. A run with the same settings reads it, one with others makes its own; none is ever mistaken for another. A run
    makes what is missing at its start, so this verb only does it beforehand, where no accelerator waits:
    `data.workers` processes share the work. A killed job begins the unfinished part anew.

    Bad rows are reported and left out, as a run leaves them out. Of the model only the tokenizer is read.

    \b
    Example:
      rrm data tokenize rrm_7b.yaml model.path=checkpoints/r1-7b data.train=data/skywork \\
        data.token_cache=data/tokens data.workers=8
    """
    import time

    from rrm_jax.checkpoints.sources import open_source
    from rrm_jax.cli.loading import Progress, warn
    from rrm_jax.config import load_config
    from rrm_jax.data.tokenizer import Tokenizer
    from rrm_jax.errors import RrmError
    from rrm_jax.judging.template import load_template
    from rrm_jax.sampling.sampler import position_limit
    from rrm_jax.training.config import TrainConfig
    from rrm_jax.training.training_data import encode_of, open_caches, open_parts, prompt_room

    resolved = load_config(TrainConfig, config, overrides or [])
    if resolved.data.token_cache is None:
        raise RrmError("name the directory of the token ids: data.token_cache=DIR, here and where the run is started")
    if resolved.method != "grpo":
        raise RrmError(f"only grpo reads prompts from a cache; this config's method is {resolved.method}")
    source = open_source(resolved.model.path)
    tokenizer, room = Tokenizer.load(source.assets), prompt_room(resolved, position_limit(source.config), warn)
    encode = encode_of(resolved, tokenizer, load_template(resolved.judge.template), room)
    parts, started = open_parts(resolved, warn), time.perf_counter()
    with Progress("tokenising", sum(len(part.rows) for part in parts)) as progress:
        caches = open_caches(resolved, parts, encode, progress.advance)
    for part, cache in zip(resolved.data.parts, caches, strict=True):
        print(
            f"{part.path}: {len(cache):,} pairs, {cache.tokens:,} tokens in both orders, {cache.cut:,} pairs cut to "
            f"fit {room}; {cache.directory}"
        )
    print(f"{time.perf_counter() - started:.1f} s")
