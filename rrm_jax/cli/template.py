"""`rrm template`: look at a judge's prompt, and write it as a template file."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    name_or_file: Annotated[str, typer.Argument(help="A packaged template's name, a TOML file, or a JSON file.")],
    out: Annotated[Path | None, typer.Option(help="Write the template here, as TOML.")] = None,
) -> None:
    """Show a judge's prompt, or write it to a file.

    Prints the SHA-256 of its content, and whether it is the prompt that released weights were trained with.

    A JSON file has the layout of released prompts: system, user_template with {question}, {answer1}, {answer2}, and
    an optional user_suffix. To write a template by hand from a model card, start from `rrm template default --out
    mine.toml`, put the card's system and user text in place of its own, with {query}, {response_1} and {response_2}
    where the card's placeholders stand, and compare the SHA-256: released weights are sensitive to the exact bytes.

    \b
    Example:
      rrm template default --out mine.toml
    """
    from rrm_jax.errors import RrmError
    from rrm_jax.judging.template import RELEASED_SHA256, load_template, to_toml

    template = load_template(name_or_file)
    text = to_toml(template)
    print(text)
    print(f"# SHA-256 of system and user: {template.sha256}")
    released = "is" if template.sha256 == RELEASED_SHA256 else "is not"
    print(f"# This {released} the prompt that the released RRM-7B and RRM-32B were trained with.")
    if out is not None:
        try:
            with open(out, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except FileExistsError:
            raise RrmError(f"{out} exists already; give another name or remove it") from None
        except OSError as error:
            raise RrmError(f"cannot write {out}: {error.strerror or error}") from None
