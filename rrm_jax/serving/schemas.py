"""What the server's routes take and give; the limits stand here, and in the OpenAPI schema that is made of this."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_RESPONSES = 256
MOST_GROUPS = 256

Text = Annotated[str, Field(max_length=4_000_000)]
Responses = Annotated[list[Text], Field(min_length=1, max_length=MOST_RESPONSES)]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="Of sampling, and of all that is shuffled.")]
Votes = Annotated[int, Field(ge=1, le=64, description="Samples a comparison; the majority decides it.")]
Id = Annotated[str, Field(max_length=200, description="Names what is asked in the answer, and addresses its order.")]
Probability = Annotated[float, Field(ge=0, le=1)]


class Body(BaseModel):
    """A request's body. A field that nobody reads is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """An answer's body. Numbers that are not finite are null."""

    model_config = ConfigDict(ser_json_inf_nan="null")


class ErrorDetail(Answer):
    """What was wrong, for people (`message`) and for programs."""

    message: str
    type: str
    code: str | None = None


class ErrorAnswer(Answer):
    """As OpenAI's."""

    error: ErrorDetail


# Chat completions


class TextPart(Body):
    """A part of a message: text is the only kind that is taken."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """Contents are text, whatever they spell. Thinking in an assistant's turn, up to its last `</think>`, is left
    out."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]


class StreamOptions(Body):
    """With `include_usage` a last chunk counts the tokens."""

    include_usage: bool = False


class Drawing(Body):
    """`temperature` and `top_p` are the server's unless given; `user` and `metadata` have no effect."""

    model: Annotated[str, Field(max_length=1000)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    min_p: Probability = 0.0
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, description="Without one each request draws its own.")] | None = (
        None
    )
    user: Annotated[str, Field(max_length=1000)] | None = None
    metadata: dict[str, str] | None = None


class ChatRequest(Drawing):
    """As OpenAI's."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31, description="Goes before max_tokens.")] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1000)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[bool, Field(description="Of the model's own distribution, at temperature 1.")] | None = None
    separate_reasoning: Annotated[
        bool, Field(description="False: content is all that was written, with `</think>` in it.")
    ] = True


class TokenLogprob(Answer):
    """A token as it was drawn. `top_logprobs` is always empty."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any]


class ChoiceLogprobs(Answer):
    """Of every token that was drawn, thinking included, but for the one that ends it."""

    content: list[TokenLogprob]


class ChatMessage(Answer):
    """`reasoning_content` is the thinking, null where there is none or it was asked not to be apart."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None


class Choice(Answer):
    """One of the `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]


class Usage(Answer):
    """Tokens of the prompt, once, and of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(Answer):
    """As OpenAI's."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


# Completions


TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class CompletionRequest(Drawing):
    """As vLLM's, of a prompt in tokens, the model's own: text has the chat's route. Whole answers alone."""

    prompt: Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
    stop_token_ids: Annotated[
        list[TokenId], Field(max_length=64, description="Beside those that end the model's answers.")
    ] = []
    logprobs: (
        Annotated[int, Field(ge=0, le=5, description="Any number: of the drawn tokens, by the model's distribution.")]
        | None
    ) = None
    return_token_ids: bool = False
    skip_special_tokens: Annotated[
        Literal[False], Field(description="Control tokens are spelled out, but for the one that ends the answer.")
    ] = False
    stream: Literal[False] | None = None


class CompletionLogprobs(Answer):
    """Of every token that was drawn, the one that ends the answer included."""

    tokens: list[str]
    token_logprobs: list[float]


class CompletionChoice(Answer):
    """One of the `n` answers; `token_ids`, where they were asked for, are all that was drawn."""

    index: int
    text: str
    token_ids: list[int] | None
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(Answer):
    """As OpenAI's."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Model(Answer):
    """As OpenAI's; `max_model_len` bounds prompt and new tokens together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(Answer):
    """As OpenAI's; the one model that is served."""

    object: Literal["list"]
    data: list[Model]


# Judging


class Judging(Body):
    """How the judge is asked; what is left out is as the server was started."""

    votes: Votes | None = None
    seed: Seed | None = None
    thinking_budget: (
        Annotated[int, Field(ge=1, lt=2**31, description="Tokens of thinking, after which the verdict is asked for.")]
        | None
    ) = None


class JudgeRequest(Judging):
    """`id` addresses the order in which votes show the pair, as in `rrm judge`; without one, its texts do."""

    query: Text
    response_1: Text
    response_2: Text
    id: Id | None = None
    order: Literal["random", "given", "both"] | None = None
    stream: bool = False


class VoteAnswer(Answer):
    """A sample of the judge. `order` "21" showed the second response first; `verdict` counts in the request's order;
    null: the text has none."""

    order: Literal["12", "21"]
    verdict: Literal[1, 2] | None
    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]
    truncated_input: bool
    forced: bool
    probability: Probability | None


class JudgeAnswer(Answer):
    """A row of `rrm judge`."""

    id: str
    winner: Literal[1, 2] | None
    probability: Probability | None
    votes: list[VoteAnswer]
    content: str


class RankRequest(Judging):
    """`strategy`, `rating`, `stop` and `invalid` as `rrm rank` takes them; who has equal `answers` is not compared."""

    query: Text
    responses: Responses
    id: Id | None = None
    strategy: Annotated[str, Field(max_length=200)] = "round-robin"
    rating: Annotated[str, Field(max_length=50)] | None = None
    budget: Annotated[int, Field(ge=1, lt=2**31, description="Comparisons at most.")] | None = None
    stop: Probability | Annotated[str, Field(max_length=50)] | None = None
    invalid: Literal["random", "draw"] = "random"
    answers: Annotated[list[Text | None], Field(max_length=MOST_RESPONSES)] | None = None
    stream: bool = False


class MatchAnswer(Answer):
    """`winner` is 1 (i), 2 (j) or null; `judged` is false where both gave the same answer and no judge was asked."""

    round: int
    i: int
    j: int
    winner: Literal[1, 2] | None
    judged: bool
    votes: list[Literal[1, 2] | None]
    probability: Probability | None
    tokens: int


class RankAnswer(Answer):
    """A row of `rrm rank`, and its matches. A strength, or an end of its interval, that there is none of is null."""

    id: str
    best: int
    ranking: list[int]
    ratings: list[float | None]
    strengths: list[float | None]
    low: list[float | None]
    high: list[float | None]
    comparisons: int
    votes: int
    tokens: int
    invalid: int
    spared: int
    invalid_votes: int
    cut_off: int
    truncated_inputs: int
    forced: int
    stopped: str
    matches: list[MatchAnswer]


# Rewards


class Group(Judging):
    """Rollouts of one query. `thinks`: the policy thinks first, and what never ended that has no answer."""

    query: Text
    responses: Responses
    opponents: Annotated[int, Field(ge=1, le=MOST_RESPONSES)] = 4
    thinks: bool = True


class RewardAnswer(Answer):
    """`rewards[g]` is response g's: (Elo − 1000) / 200 + 0.5; `ratings` are the Elos."""

    rewards: list[float]
    ratings: list[float]
    matches: list[MatchAnswer]
    comparisons: int
    invalid: int
    tokens: int


class RemoteRewardRequest(BaseModel):
    """As OpenRLHF sends it: `query` are prompts with what was written after them. `labels` have no effect."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[list[Text], Field(min_length=1, max_length=4096)]
    prompts: Annotated[list[Text], Field(min_length=1, max_length=4096)]
    labels: list[Any] | None = None
    thinks: bool = True


class RemoteRewardAnswer(Answer):
    """As OpenRLHF reads it: a number for each rollout, in the request's order, under both names; `extra_logs` has each
    one's rating and `invalid`."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class Health(Answer):
    """The process answers, whether or not the model is loaded."""

    status: Literal["alive"]


class Ready(Answer):
    """The model is loaded and answers."""

    status: Literal["ready"]
    model: str
