"""`rrm serve`: a model at an HTTP server."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from rrm_jax.cli.judge_options import JudgeOptions, open_judge
from rrm_jax.cli.loading import LazyModel, Progress, open_model, warn
from rrm_jax.cli.options import DeviceOptions, Verdicts, with_options
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.serving.service import Service

_LOCAL = ("127.0.0.1", "localhost", "::1")


@with_options
def command(
    models: DeviceOptions,
    judging: JudgeOptions,
    verdicts: Verdicts = None,
    name: Annotated[
        str | None,
        typer.Option(help="What clients call the model. [default: its directory's name]", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one, which is printed.")] = 8000,
    token_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the token that requests must bear (not /health)."),
    ] = None,
    block: Annotated[
        int, typer.Option(min=1, help="Tokens between two looks: how soon a stream goes on, and a request begins.")
    ] = 16,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait for a row; more are answered 429.")
    ] = (256),
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds an answer may take; then it is 504.")] = 600.0,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request at most; more are answered 413.")] = 8 << 20,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds to finish what runs when told to end (SIGTERM).")] = (
        30.0
    ),
    reward_group: Annotated[
        int,
        typer.Option(
            min=0,
            max=256,
            help="/get_reward: rollouts of one prompt that make a group, from however many requests bring them "
            "(OpenRLHF sends each alone). 0: those of one request.",
        ),
    ] = 0,
    reward_wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds after which such a group is rewarded though it is not whole.")
    ] = 60.0,
) -> None:
    """Serve a model over HTTP: chat completions, verdicts, rankings and rewards, all from one batch.

    POST /v1/chat/completions and GET /v1/models are as OpenAI's; POST /judge, /rank and /compare take texts and give
    what rrm judge and rrm rank write, and rewards by tournament; POST /get_reward is OpenRLHF's. /health, /ready and
    /metrics tell how it is, /openapi.json what it takes. docs/serving.md has examples. Options of judging are what
    requests get that do not say otherwise.

    What is answered does not depend on who else asks: the same request with the same seed gets what the other verbs
    write. With --verdicts no vote is drawn twice, also after a crash.

    \b
    Example:
      rrm serve --model runs/judge --port 8000 --verdicts verdicts.jsonl
      curl http://127.0.0.1:8000/judge -H 'Content-Type: application/json' \\
        -d '{"query": "2 + 2?", "response_1": "4", "response_2": "5", "votes": 3}'
    """
    try:
        from rrm_jax.serving.app import create_app
        from rrm_jax.serving.server import serve
    except ModuleNotFoundError as error:
        raise RrmError(f"rrm serve needs the package {error.name}; install rrm-jax[serve]") from None

    token = None
    if token_env is not None:
        token = os.environ.get(token_env)
        if not token:
            raise RrmError(f"--token-env {token_env}: that environment variable is not set")
    elif host not in _LOCAL:
        warn(f"warning: {host} can be reached from other machines, and no token is asked for; give --token-env")
    service = _service(models, judging, verdicts, name, _limits(max_waiting, timeout, max_body))
    app = create_app(service, token, reward_group, reward_wait)
    load = lambda: open_model(models, None, block)  # noqa: E731
    serve(service, app, load, host=host, port=port, grace=grace, say=warn)


def _limits(waiting: int, seconds: float, body_bytes: int):
    from rrm_jax.serving.service import Limits

    return Limits(waiting, seconds, body_bytes)


def _service(models: DeviceOptions, judging: JudgeOptions, verdicts, name: str | None, limits) -> "Service":
    """All but the weights, checked."""
    from rrm_jax.sampling.protocol import Decoding
    from rrm_jax.serving.chat import ChatModel
    from rrm_jax.serving.jobs import SharedLog
    from rrm_jax.serving.service import Service

    model = LazyModel(models, Progress("serving"))
    judge = open_judge(model, judging)
    log = None if verdicts is None else SharedLog(verdicts, report=warn)
    assert model.tokenizer is not None
    decoding: Decoding = judge.arguments["decoding"]
    called = name if name is not None else models.model.resolve().name
    chat = ChatModel(called, model.tokenizer, decoding, model.max_positions)
    return Service(chat, judge, log, limits, models.batch_size)
