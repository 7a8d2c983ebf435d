"""Completions of prompts in tokens, as vLLM has them, on the engine: for `RemoteGenerator`, whose prompts are exact."""

import asyncio
import dataclasses
import secrets
import time
from typing import Any

from starlette.types import Receive

from rrm_jax.judging.verdict import written_ids
from rrm_jax.sampling.protocol import Completion
from rrm_jax.serving.chat import ChatModel, check_name, drawing
from rrm_jax.serving.engine import Engine, Ticket, Withdrawn
from rrm_jax.serving.responses import while_wanted
from rrm_jax.serving.schemas import CompletionRequest


async def complete(
    engine: Engine, model: ChatModel, body: CompletionRequest, receive: Receive, seconds: float
) -> dict[str, Any]:
    """The whole answer. Its rows are free again when the reader leaves (ClientGone), or after `seconds`
    (TimeoutError)."""
    check_name(model, body)
    stops = tuple(sorted({*model.tokenizer.stop_ids, *body.stop_token_ids}))
    request = drawing(model, body, tuple(body.prompt), body.max_tokens, stops)
    tickets: list[Ticket] = []
    try:
        for sample in range(body.n or 1):
            tickets.append(engine.submit(dataclasses.replace(request, sample=sample)))
        made = await while_wanted(asyncio.gather(*map(_result, tickets)), receive, seconds)
    finally:
        for ticket in tickets:
            ticket.cancel()
    written = sum(len(completion.token_ids) for completion in made)
    usage = {"prompt_tokens": len(body.prompt), "completion_tokens": written}
    return {
        "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
        "model": model.name, "choices": [_choice(model, body, *choice) for choice in enumerate(made)],
        "usage": usage | {"total_tokens": len(body.prompt) + written},
    }  # fmt: skip


async def _result(ticket: Ticket) -> Completion:
    try:
        return await asyncio.shield(asyncio.wrap_future(ticket))
    except asyncio.CancelledError:
        if ticket.cancelled():  # by the engine; where the reader has gone, it is cancelled only after this
            raise Withdrawn("the server is shutting down") from None
        raise


def _choice(model: ChatModel, body: CompletionRequest, index: int, made: Completion) -> dict[str, Any]:
    decode = model.tokenizer.decode
    logprobs = None
    if body.logprobs is not None:
        logprobs = {"tokens": [decode([token]) for token in made.token_ids], "token_logprobs": made.model_logprobs}
    return {
        "index": index,
        "text": decode(written_ids(made, model.tokenizer)),
        "token_ids": made.token_ids if body.return_token_ids else None,
        "logprobs": logprobs,
        "finish_reason": made.finish_reason,
    }
