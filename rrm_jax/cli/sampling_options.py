"""What the verbs that sample from a model, and do not judge, share: how tokens are drawn, and how questions are put."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.backend import Writer
from rrm_jax.cli.options import Temperature, TopP

if TYPE_CHECKING:
    from rrm_jax.data.records import Question
    from rrm_jax.data.tokenizer import Tokenizer
    from rrm_jax.evaluation.answering import Asked
    from rrm_jax.sampling.protocol import Decoding
    from rrm_jax.training.policy_config import PolicyConfig


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn."""

    n: Annotated[int, typer.Option("--n", min=1, help="Samples a prompt.")] = 1
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling.")] = 0
    temperature: Temperature = 0.6
    top_p: TopP = 1.0
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many most probable tokens; 0: from all.")] = 0
    min_p: Annotated[
        float, typer.Option(max=1.0, min=0.0, help="Drop tokens less probable than this × the most probable one.")
    ] = 0.0
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 8192

    def decoding(self, generator: Writer, stop_ids: tuple[int, ...]) -> "Decoding":
        """Raises RrmError for settings that cannot be, or that the generator does not serve."""
        from rrm_jax.errors import RrmError
        from rrm_jax.sampling.protocol import Decoding

        try:
            decoding = Decoding(
                self.temperature, self.top_k, self.top_p, self.max_new_tokens, stop_ids, self.min_p
            )  # fmt: skip
        except ValueError as error:
            raise RrmError(str(error)) from None
        generator.check(decoding)
        return decoding


def decoding_settings(decoding: "Decoding") -> dict[str, Any]:
    """What was added later appears only where it is used, so that files of earlier versions are gone on with."""
    settings: dict[str, Any] = {**dataclasses.asdict(decoding), "stop_ids": list(decoding.stop_ids)}
    del settings["thinking"]  # a judge's, never set here
    if not decoding.min_p:
        del settings["min_p"]
    return settings


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """How a question is put to a policy."""

    system: Annotated[
        str | None,
        typer.Option(
            help="The system turn; may be empty. [default: as the model was trained here as a policy, else none]",
            show_default=False,
        ),
    ] = None
    user: Annotated[
        str | None,
        typer.Option(
            help="The user turn, which holds {query} once. [default: as trained here, else {query}]", show_default=False
        ),
    ] = None
    prefix: Annotated[
        str | None,
        typer.Option(
            help="How the model's turn begins; control tokens are parsed in it, and \\n is a new line. [default: as "
            "trained here, else <think>\\n where the tokenizer has that token, else nothing]",
            show_default=False,
        ),
    ] = None


def open_policy(generator: Writer, options: PromptOptions, max_prompt_tokens: int | None = None) -> "PolicyConfig":
    """How the model is asked: as the options say, else as it was trained here, else as is usual.

    A model whose turn begins in a `<think>` is taken to think. A server's chat API begins turns itself. Raises
    RrmError.
    """
    from rrm_jax.data.tokenizer import END_THINK, THINK
    from rrm_jax.errors import RrmError
    from rrm_jax.training.policy_config import PolicyConfig
    from rrm_jax.training.policy_prompt import PROMPT

    tokenizer, trained = generator.tokenizer, generator.facts.get("policy") or {}
    assert tokenizer is not None
    usual = {"prefix": f"{THINK}\n" if tokenizer.control_id(THINK) is not None else ""}
    asked: dict[str, Any] = usual | {key: trained[key] for key in PROMPT if key in trained}
    given: dict[str, Any] = {"system": options.system, "user": options.user, "max_prompt_tokens": max_prompt_tokens}
    given["prefix"] = None if options.prefix is None else options.prefix.replace("\\n", "\n")
    if generator.takes_messages:
        if options.prefix is not None:
            raise RrmError("--backend-api chat lets the server begin the model's turn; leave --prefix out")
        given |= {"prefix": ""}
    asked |= {key: value for key, value in given.items() if value is not None}
    if given["prefix"] is not None or "thinking" not in asked:
        asked["thinking"] = asked["prefix"].rfind(THINK) > asked["prefix"].rfind(END_THINK)
    if asked.get("user", "{query}").count("{query}") != 1:
        raise RrmError(f"--user must hold {{query}} once, not {asked['user'].count('{query}')} times")
    return PolicyConfig(**asked)


@dataclasses.dataclass(frozen=True)
class PolicyAsking:
    """Questions as prompts of a policy, with a line after each; an `Asking`. With `cut` the end of a question that is
    too long is cut off, else it is not asked."""

    policy: "PolicyConfig"
    tokenizer: "Tokenizer"
    instruction: str = ""
    cut: bool = True

    def text(self, question: "Question") -> str:
        """What the prompt is made of: the question and the instruction."""
        return "\n".join(filter(None, (question.query, self.instruction)))

    def prompt(self, question: "Question") -> "Asked | None":
        """None for a question that is too long and is not to be cut."""
        from rrm_jax.evaluation.answering import Asked
        from rrm_jax.training.policy_prompt import policy_messages, policy_prompt

        text = self.text(question)
        messages = policy_messages(self.policy, text)
        if self.cut:
            ids, cut = policy_prompt(self.policy, self.tokenizer, text)
            return Asked(tuple(ids), messages, cut)
        ids = self.tokenizer.encode_chat(messages, self.policy.prefix)
        return Asked(tuple(ids), messages) if len(ids) <= self.policy.max_prompt_tokens else None

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on."""
        from rrm_jax.training.policy_prompt import prompt_facts

        return prompt_facts(self.policy) | ({"instruction": self.instruction} if self.instruction else {})
