"""What a verb writes with: a model on this machine's devices, or one at a server."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rrm_jax.cli.loading import LazyModel, Progress
from rrm_jax.cli.options import ModelOptions

if TYPE_CHECKING:
    from rrm_jax.data.tokenizer import Tokenizer
    from rrm_jax.sampling.protocol import Completion, Decoding, Request


class Writer(Protocol):
    """A generator, and what a verb needs to know of its model before anything is drawn.

    `assets` holds the tokenizer's files, and perhaps a judge template; `facts` is what the checkpoint records; `names`
    are what the model is called; `identity` is what its completions depend on, the same wherever it runs;
    `max_positions` bounds prompt and new tokens together; `takes_messages`: it reads `Request.messages`, not
    `prompt_ids`. `tokenizer` is None only where none was needed.
    """

    assets: Path
    facts: dict[str, Any]
    names: list[str]
    identity: str
    max_positions: int
    vocab_size: int
    takes_messages: bool
    tokenizer: "Tokenizer | None"

    def check(self, decoding: "Decoding") -> None:
        """RrmError for a way to decode that it does not serve."""
        ...

    def generate(self, requests: "Iterable[Request]") -> "Iterator[Completion]":
        """As `Generator` has it."""
        ...


def open_generator(options: ModelOptions, progress: Progress, needs_tokenizer: bool = True) -> Writer:
    """The generator that the options describe, before it has read a weight or called its server.

    Without a tokenizer in the model's directory: RrmError, or None where none is needed.
    """
    from rrm_jax.errors import RrmError

    if options.backend is not None:
        return RemoteModel(options, progress)
    for name, value in (("--backend-model", options.backend_model), ("--api-key-env", options.api_key_env)):
        if value is not None:
            raise RrmError(f"{name} is for a server; give its address as --backend, or leave it out")
    return LazyModel(options, progress, needs_tokenizer)


class RemoteModel:
    """A model at a server. Its directory here supplies the tokenizer, the judge's template and the positions."""

    def __init__(self, options: ModelOptions, progress: Progress):
        from rrm_jax.data.tokenizer import Tokenizer
        from rrm_jax.errors import RrmError
        from rrm_jax.sampling.remote import RemoteGenerator

        if options.backend is None or not options.backend_model:
            raise RrmError("--backend needs --backend-model, the model's name at the server")
        self.assets, self.facts = _assets(options.model)
        tokenizer = Tokenizer.load(self.assets)
        self.tokenizer: Tokenizer | None = tokenizer
        self.max_positions, self.vocab_size = _sizes(self.assets, tokenizer)
        self.names = [options.backend_model]
        # Not the address: the same model at another server goes on with the same votes.
        self.identity = f"{options.backend_model} at a server, by its {options.backend_api} API"
        self.takes_messages = options.backend_api == "chat"
        remote = RemoteGenerator(
            options.backend,
            options.backend_model,
            tokenizer,
            api=options.backend_api,
            concurrency=options.concurrency,
            key_variable=options.api_key_env,
            progress=progress.show,
        )
        self.check, self.generate = remote.check, remote.generate


def _assets(model: Path) -> tuple[Path, dict[str, Any]]:
    """A model directory's plain files, and its recorded facts; weights may be missing."""
    from rrm_jax.checkpoints.assets import FACTS, read_json
    from rrm_jax.checkpoints.sources import open_source, resolve_kind

    if resolve_kind(model) == "hf":
        return model, read_json(model / FACTS) if (model / FACTS).is_file() else {}
    source = open_source(model)
    return source.assets, source.facts


def _sizes(assets: Path, tokenizer: "Tokenizer") -> tuple[int, int]:
    """Positions and vocabulary of a model of any kind: a server runs more architectures than Qwen2."""
    from rrm_jax.checkpoints.assets import CONFIG, read_config, read_json
    from rrm_jax.errors import RrmError
    from rrm_jax.sampling.sampler import position_limit

    try:
        config = read_config(assets)
        return position_limit(config), config.vocab_size
    except RrmError:
        pass
    hf = read_json(assets / CONFIG)
    hf = hf["text_config"] if isinstance(hf.get("text_config"), dict) else hf
    positions, vocabulary = hf.get("max_position_embeddings"), hf.get("vocab_size", tokenizer.vocab_size)
    if type(positions) is not int or positions < 1 or type(vocabulary) is not int:
        raise RrmError(f"{assets / CONFIG} does not say how many positions the model has (max_position_embeddings)")
    return positions, vocabulary
