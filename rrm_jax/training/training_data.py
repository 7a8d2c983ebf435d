"""The training data that a configuration names: opened, checked, and fed to a run."""

from collections.abc import Callable
from pathlib import Path

from rrm_jax.data.pairs import open_pairs, open_questions
from rrm_jax.data.prepared import Prepared, content_file, is_prepared
from rrm_jax.data.stream import PairStream, Part
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.template import Template
from rrm_jax.provenance import fingerprint
from rrm_jax.sampling.sampler import room_for_prompt
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.feed import Feed
from rrm_jax.training.token_cache import Encode, TokenCache, open_token_cache


def open_parts(config: TrainConfig, report: Callable[[str], None]) -> list[Part]:
    """The parts of `data.train`: pairs, or, for GRPO on a policy, questions.

    Raises RrmError where one cannot be trained on; bad rows are reported and left out.
    """
    if not config.data.parts:
        raise RrmError("data.train is an empty list; name a file, or parts as {path, weight}")
    opened = open_questions if (config.task, config.method) == ("policy", "grpo") else open_pairs
    try:
        return [Part(opened(Path(part.path), report, config.data.limit), part.weight) for part in config.data.parts]
    except RrmError as error:
        raise RrmError(f"data.train: {error}") from None


def prompt_room(config: TrainConfig, positions: int, report: Callable[[str], None]) -> int:
    """Tokens that a prompt has at most: as configured, and, where something is sampled, as the model's `positions`
    leave beside the answer. RrmError where they leave none."""
    wanted, new = config.max_prompt_tokens, config.rollout.max_new_tokens
    if config.method != "grpo" and not config.data.eval:
        return wanted
    room = room_for_prompt(positions, new, f"rollout.max_new_tokens={new}")
    if wanted > room:
        report(
            f"the model has {positions} positions: prompts are cut to {room} tokens, not {wanted}, to leave {new} for "
            "the answer"
        )
    return min(wanted, room)


def encode_of(config: TrainConfig, tokenizer: Tokenizer, template: Template, max_prompt_tokens: int) -> Encode:
    """How this run's pairs become prompts."""
    return Encode(template, tokenizer, max_prompt_tokens, config.judge.thinking)


def open_caches(
    config: TrainConfig, parts: list[Part], encode: Encode, progress: Callable[[], None] = lambda: None
) -> list[TokenCache]:
    """The parts' token caches in `data.token_cache`, made where they are missing; none without it."""
    home, data = config.data.token_cache, config.data
    if home is None:
        return []
    return [
        open_token_cache(Path(home), part.rows, _contents(Path(given.path), data.limit), encode, data.workers, progress)
        for part, given in zip(parts, data.parts, strict=True)
    ]


def open_feed(config: TrainConfig, parts: list[Part], encode: Encode) -> Feed:
    """Close it."""
    return Feed(
        PairStream(parts, config.seed),
        encode,
        both_orders=config.reward.consistency > 0,
        workers=config.data.workers,
        caches=open_caches(config, parts, encode),
    )


def data_files(config: TrainConfig) -> dict[str, str | Path]:
    """The files whose SHA-256 says whether the data are the same, by what they are for."""
    single = isinstance(config.data.train, str)
    files: dict[str, str | Path] = {}
    for at, part in enumerate(config.data.parts):
        files["train" if single else f"train[{at}]"] = content_file(Path(part.path))
    if config.data.eval:
        files["eval"] = content_file(Path(config.data.eval))
    return files


def _contents(path: Path, limit: int | None) -> str:
    content = Prepared(path).fingerprint if is_prepared(path) else fingerprint(path)
    return content if limit is None else f"the first {limit} of {content}"
