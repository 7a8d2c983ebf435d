"""The routes. Each says what it takes, gives and refuses, so that the OpenAPI schema is true."""

import asyncio
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from rrm_jax import __version__
from rrm_jax.errors import RrmError
from rrm_jax.serving import jobs, schemas
from rrm_jax.serving.chat import Conversation, request_of
from rrm_jax.serving.completions import complete
from rrm_jax.serving.gathering import Gathering
from rrm_jax.serving.guard import Guard
from rrm_jax.serving.page import add_page
from rrm_jax.serving.responses import ClientGone, HttpError, http_error, while_wanted
from rrm_jax.serving.service import Service

_MEANINGS = {
    400: "What is asked for cannot be.",
    401: "The token is missing, or another.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    422: "The body does not have the form that is described here.",
    429: "Too many requests wait; try again after Retry-After seconds.",
    503: "The weights are being loaded, the engine has failed, or the server is shutting down.",
    504: "The answer took too long.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.ErrorAnswer, "description": _MEANINGS[status]} for status in (401, *statuses)}


_WORK = _refusals(400, 408, 413, 422, 429, 503, 504)
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_LARGE = 16_384
"""Bytes of a body from which on it takes longer to tokenize than to hand to another thread and back."""
_MOST_PROBLEMS = 5
"""Of a body, that are told."""
_EVENTS = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}


def create_app(service: Service, token: str | None = None, group: int = 0, group_seconds: float = 30.0) -> FastAPI:
    """`token` is asked for, unless None. `group`, `group_seconds`: see `Gathering`."""
    app = FastAPI(title="rrm_jax", version=__version__, docs_url=None, redoc_url=None)
    limits = service.limits
    app.add_middleware(
        Guard, metrics=service.metrics, token=token, most_bytes=limits.body_bytes, most_open=service.most_open,
        seconds=limits.seconds,
    )  # fmt: skip
    _answer_errors(app)
    _add_states(app, service)
    _add_chat(app, service)
    _add_completions(app, service)
    _add_judging(app, service)
    _add_rewards(app, service, group, group_seconds)
    add_page(app, service, token is not None)
    return app


def _problem(found: dict[str, Any]) -> str:
    place = found.get("loc", ())[1:]
    if found.get("type") == "json_invalid":
        return f"the body is not JSON: {found.get('ctx', {}).get('error', '')} (character {place[-1] + 1})"
    return f"{'.'.join(map(str, place)) or 'the body'}: {found.get('msg', 'it is not valid')}"


def _answer_errors(app: FastAPI) -> None:
    async def failed(_: Request, error: Exception) -> Response:
        return http_error(error).response()

    async def malformed(request: Request, error: RequestValidationError) -> Response:
        told = "; ".join(map(_problem, error.errors()[:_MOST_PROBLEMS])) or "the body: it is not valid"
        if "json" not in request.headers.get("content-type", ""):
            told += " (it is read as JSON with the header Content-Type: application/json)"
        return HttpError(422, told, "invalid_body").response()

    async def refused(request: Request, error: HTTPException) -> Response:
        told, code = str(error.detail), "invalid_body"
        if error.status_code in (404, 405):
            told += f": {request.method} {request.url.path}; /openapi.json lists what is served"
            code = "not_served"
        return HttpError(error.status_code, told, code, dict(error.headers or {})).response()

    async def left(_: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it

    app.add_exception_handler(RequestValidationError, malformed)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, refused)  # type: ignore[arg-type]
    app.add_exception_handler(ClientGone, left)  # type: ignore[arg-type]
    for kind in (HttpError, RrmError, TimeoutError, Exception):
        app.add_exception_handler(kind, failed)


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=schemas.Health)
    async def health() -> Any:
        """The process is alive."""
        return {"status": "alive"}

    ready_or_not = {503: {"model": schemas.ErrorAnswer, "description": _MEANINGS[503]}}

    @app.get("/ready", response_model=schemas.Ready, responses=ready_or_not)  # type: ignore[arg-type]
    async def ready() -> Any:
        """The weights are loaded, and the engine is well."""
        service.ready()
        return {"status": "ready", "model": service.model.name}

    @app.get("/metrics", response_class=PlainTextResponse, responses=_refusals())
    async def metrics() -> Any:
        """Counts and gauges for Prometheus."""
        return service.metrics_text()

    @app.get("/v1/models", response_model=schemas.Models, responses=_refusals())
    async def models() -> Any:
        """The one model that is served."""
        model = {
            "id": service.model.name, "object": "model", "created": 0, "owned_by": "rrm_jax",
            "max_model_len": service.model.max_positions,
        }  # fmt: skip
        return {"object": "list", "data": [model]}


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=schemas.ChatAnswer, responses=_WORK | _refusals(404) | _EVENTS)
    async def chat(body: schemas.ChatRequest, request: Request) -> Any:
        """A completion of a conversation, as OpenAI's API has it. With `stream`, its chunks as server-sent events."""
        engine = service.ready()
        if len(await request.body()) < _LARGE:
            asked = request_of(service.model, body)
        else:
            asked = await asyncio.to_thread(request_of, service.model, body)
        conversation = Conversation(engine, service.model, body, asked)
        return await conversation.answer(request.receive, service.limits.seconds)


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", response_model=schemas.CompletionAnswer, responses=_WORK | _refusals(404))
    async def completions(body: schemas.CompletionRequest, request: Request) -> Any:
        """A completion of a prompt in tokens, which may stand anywhere: in a template, or within an answer."""
        seconds = service.limits.seconds
        return JSONResponse(await complete(service.ready(), service.model, body, request.receive, seconds))


def _add_judging(app: FastAPI, service: Service) -> None:
    @app.post("/judge", response_model=schemas.JudgeAnswer, responses=_WORK | _EVENTS)
    async def judge(body: schemas.JudgeRequest, request: Request) -> Any:
        """Which of two responses is better. With `stream`: events `tokens`, then `verdict`, or `error`."""
        work = lambda job: jobs.judge_pair(job, body)  # noqa: E731
        return await service.answer(work, request.receive, "verdict" if body.stream else "")

    @app.post("/rank", response_model=schemas.RankAnswer, responses=_WORK | _EVENTS)
    async def rank(body: schemas.RankRequest, request: Request) -> Any:
        """Responses from the best to the worst. With `stream`: events `started`, `tokens` and `match` as they come,
        then `ranking`, or `error`."""
        work = lambda job: jobs.rank_responses(job, body)  # noqa: E731
        return await service.answer(work, request.receive, "ranking" if body.stream else "")


_Groups = Annotated[list[schemas.Group], Body(min_length=1, max_length=schemas.MOST_GROUPS)]


def _add_rewards(app: FastAPI, service: Service, group: int, group_seconds: float) -> None:
    async def play(groups: list[schemas.Group]) -> list[dict]:
        async with asyncio.timeout(service.limits.seconds):
            return await service.run(service.job(), lambda job: jobs.reward_groups(job, groups))

    gathering = Gathering(group, group_seconds, play)

    @app.post("/compare", response_model=schemas.RewardAnswer | list[schemas.RewardAnswer], responses=_WORK)
    async def compare(body: schemas.Group | _Groups, request: Request) -> Any:
        """Rewards for a group of rollouts of one query, by a tournament among them; or for a list of such groups."""
        groups = body if isinstance(body, list) else [body]
        found = await while_wanted(play(groups), request.receive, service.limits.seconds)
        return JSONResponse(found if isinstance(body, list) else found[0])

    @app.post("/get_reward", response_model=schemas.RemoteRewardAnswer, responses=_WORK)
    async def get_reward(body: schemas.RemoteRewardRequest, request: Request) -> Any:
        """Rewards as OpenRLHF's `--reward.remote_url` asks for them; texts that share a prompt are a group."""
        if len(body.query) != len(body.prompts):
            raise HttpError(422, f"{len(body.query)} texts in query and {len(body.prompts)} prompts", "invalid_body")
        found = await while_wanted(gathering.rewards(body), request.receive, service.limits.seconds)
        rewards, ratings, invalid = map(list, zip(*found, strict=True))
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"rating": ratings, "invalid": invalid}}
