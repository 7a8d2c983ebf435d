"""Options that several verbs share, each declared once."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first malformed row, before anything is run.")]

ConfigFile = Annotated[str, typer.Argument(help="A YAML file, or the name of one that comes with the package.")]

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")]

Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]

TopP = Annotated[float, typer.Option(max=1.0, help="In (0, 1]: draw from the most probable tokens.")]

Verdicts = Annotated[
    Path | None,
    typer.Option(
        metavar="STORE",
        help="Keep votes here, and draw none that is here, instead of OUT.votes.jsonl; shared by any jobs, at the same "
        "time too. See rrm verdicts.",
        show_default=False,
    ),
]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it: a parameter that is a dataclass becomes its fields, options each, and the command
    is called with the dataclass that they make."""
    groups: dict[str, type] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        for field in dataclasses.fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            options.append(inspect.Parameter(field.name, kind, default=default, annotation=field.type))

    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**made, **values)

    run.__doc__, run.__annotations__ = command.__doc__, {option.name: option.annotation for option in options}
    run.__dict__["__signature__"] = inspect.Signature(options)
    return run


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Which model writes on the devices of this machine."""

    model: Annotated[
        Path, typer.Option(help="A Hugging Face directory, a converted checkpoint, or a training run's directory.")
    ]
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 32
    dtype: Annotated[str, typer.Option(help="auto (float32 on CPU, else bfloat16), float32 or bfloat16.")] = "auto"
    cache_dtype: Annotated[
        Literal["auto", "int8", "float8_e4m3fn"],
        typer.Option(
            help="How keys and values are kept: auto, as --dtype, or narrower: half the memory, some rounding."
        ),
    ] = "auto"
    weight_dtype: Annotated[
        Literal["auto", "int8", "float8_e4m3fn"],
        typer.Option(help="How matrices are kept: auto, as --dtype, or narrower: half the memory, more rounding."),
    ] = "auto"
    prompt_lookup: Annotated[
        int,
        typer.Option(
            min=0, help="Guess so many tokens at a time from what the text repeats (0: none). The text stays the same."
        ),
    ] = 0
    mesh: Annotated[str, typer.Option(help="Devices along each axis; one may be -1, all that remain.")] = (
        "data=1,fsdp=-1,tensor=1"
    )


@dataclasses.dataclass(frozen=True)
class ModelOptions(DeviceOptions):
    """Which model writes, and where: on the devices of this machine, or at a server."""

    backend: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let an OpenAI-compatible server write (vLLM, SGLang, llama.cpp, a hosted API), such as "
            "http://localhost:8000. No weights are read then: of --model the tokenizer's files and config.json are "
            "enough, and how it is run here (--batch-size to --mesh) is of no matter.",
        ),
    ] = None
    backend_model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name at the server.")] = None
    backend_api: Annotated[
        Literal["completions", "chat"],
        typer.Option(
            help="completions sends token ids, so --model must have the served model's tokenizer; chat sends the "
            "conversation, for servers that take no ids. A chat model that does not show its thinking judges with "
            "--direct."
        ),
    ] = "completions"
    concurrency: Annotated[int, typer.Option(min=1, help="Requests open at the server at a time.")] = 64
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the API key; OPENAI_API_KEY where that is set."),
    ] = None
