"""The reference of the command line, from the commands themselves: a page a verb, and one that lists them."""

import functools
import inspect
import re
from typing import Any

import typer

from rrm_jax.cli.main import _app

FOLDER = "reference/cli"


@functools.cache
def pages() -> dict[str, str]:
    """Markdown by its path below docs/."""
    root: Any = typer.main.get_command(_app)
    made = {f"{FOLDER}/index.md": _index(root)}
    for name, command in root.commands.items():
        made[f"{FOLDER}/{name}.md"] = "\n".join(_lines(command, f"rrm {name}", level=1))
    return made


def _index(root: Any) -> str:
    rows = [f"| [`rrm {name}`]({name}.md) | {_cell(_summary(verb))} |" for name, verb in root.commands.items()]
    about = f"{root.help} Every verb says the same with `--help`. {_escaped(root.epilog)}"
    return "\n".join(["# The command line", "", about, "", "| verb | |", "|---|---|", *rows, ""])


def _summary(command: Any) -> str:
    return inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")


def _lines(command: Any, name: str, level: int) -> list[str]:
    context = command.context_class(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"{'#' * level} {name}", "", f"`{usage}`", "", *_prose(command.help or ""), ""]
    for title, kind in (("Argument", "argument"), ("Option", "option")):
        rows = [parameter for parameter in command.get_params(context) if parameter.param_type_name == kind]
        records = [record for parameter in rows if (record := parameter.get_help_record(context))]
        records = [record for record in records if record[0] != "--help"]
        if records:
            lines += [
                f"| {title} | |",
                "|---|---|",
                *(f"| `{left}` | {_cell(right)} |" for left, right in records),
                "",
            ]
    for verb, inner in getattr(command, "commands", {}).items():
        lines += _lines(inner, f"{name} {verb}", level + 1)
    return lines


def _prose(text: str) -> list[str]:
    """Paragraphs as they are, and those marked by \\b, whose lines stand as they are, as code."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        literal = paragraph.startswith("\b")
        body = paragraph.lstrip("\b\n") if literal else _escaped(paragraph)
        if literal and body.startswith("Example:"):
            lines += ["```bash", inspect.cleandoc(body.partition("\n")[2]), "```", ""]
        elif literal:
            lines += ["```text", inspect.cleandoc(body), "```", ""]
        else:
            lines += [body, ""]
    return lines


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]<>`{}#~])", r"\\\1", text)


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")
