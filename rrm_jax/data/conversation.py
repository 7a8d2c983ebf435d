"""Conversations as lists of messages, and the texts that a judge sees of them.

A pair has one query and two responses, each a text. Where the prompt is one user turn, and a completion one assistant
turn, these are their contents as they stand. Anything longer is written out whole, `System: …`, `User: …`,
`Assistant: …`, a blank line between: nothing is lost, but it is read as one text.
"""

from typing import Any

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import checked_text

Message = dict[str, Any]
Turns = dict[str, list[Message]]
"""`prompt`, and the completions `chosen` and `rejected`, whose first turn is the assistant's."""


def turns_of(row: dict[str, Any]) -> Turns:
    """The turns of a preference row, with its prompt apart, or within both conversations. Raises RowError.

    A prompt that is within them is the turns that they share from the first on. Beside such conversations a row may
    have its question again, as text.
    """
    chosen, rejected = (_messages(row.get(key), key) for key in ("chosen", "rejected"))
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        turns = {"prompt": _messages(prompt, "prompt"), "chosen": chosen, "rejected": rejected}
    elif isinstance(prompt, str) and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        turns = {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected}
    elif prompt is None or isinstance(prompt, str):
        turns = _shared_prompt(chosen, rejected)
        if prompt is not None and all(message["content"] != prompt for message in turns["prompt"]):
            raise RowError("the prompt is none of the turns that chosen and rejected share")
    else:
        raise RowError(f"prompt must be a list of messages, not {type(prompt).__name__}")
    for key in ("chosen", "rejected"):
        if turns[key][0]["role"] != "assistant":
            raise RowError(f"{key} goes on after the prompt with a turn of the {turns[key][0]['role']}'s")
    return turns


def texts_of(turns: Turns) -> tuple[str, str, str]:
    """(Query, better response, worse response)."""
    return (
        _as_text(turns["prompt"], "user"),
        _as_text(turns["chosen"], "assistant"),
        _as_text(turns["rejected"], "assistant"),
    )


def single_turns(query: str, chosen: str, rejected: str) -> Turns:
    """A user turn, and an assistant turn for either response."""
    return {
        "prompt": [{"role": "user", "content": query}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _shared_prompt(chosen: list[Message], rejected: list[Message]) -> Turns:
    most = min(len(chosen), len(rejected)) - 1  # a completion has a turn at least
    shared = next((at for at in range(most) if chosen[at] != rejected[at]), most)
    if not shared:
        raise RowError("chosen and rejected share no turn, so there is no prompt")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"{key} must be a list of messages, not {type(value).__name__}")
    if not value:
        raise RowError(f"{key} has no message")
    for at, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(f"{key}[{at}] must be a message with a role and a content, both text")
        checked_text(message["role"], f"{key}[{at}].role")
        checked_text(message.get("content"), f"{key}[{at}].content")
    return value


def _as_text(messages: list[Message], role: str) -> str:
    if len(messages) == 1 and messages[0]["role"] == role:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
