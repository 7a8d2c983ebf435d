"""The judge's prompt as data: packaged, written by hand, or taken from a model card.

A template file is TOML:

    name = "mine"
    system = "the system turn, taken as it is"
    user = '''
    ## Query
    {query}
    ...{response_1}...{response_2}...'''
    thinking_prefix = "<think>\\n"                  # optional: how the model's turn begins
    direct_prefix = "<think>\\n\\n</think>\\n\\n"   # optional: the same when it must not think
    closing = "\\n</think>\\n\\n"                  # optional: what ends thinking whose budget is used up
    verdict_prefix = "\\n\\n"                      # optional: what stands before a constrained verdict

To write one by hand from a model card, copy the card's system text into `system` and its user text into `user`,
putting {query}, {response_1} and {response_2} where the card's own placeholders stand. Released weights are
sensitive to the exact bytes: TOML drops one newline right after an opening ''' and keeps every other blank and
newline, and a literal string between ''' leaves backslashes alone. `rrm template FILE` then prints the SHA-256 to
compare with.
"""

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.data.tokenizer import Tokenizer

# Of the prompt in the authors' released evaluation code, which RRM-7B and RRM-32B were trained with.
RELEASED_SHA256 = "87c4af8188cd06559689b39c4dcf60725812a6ec8f17de22cdeea981f7608eea"

_PLACEHOLDERS = ("query", "response_1", "response_2")
_PLACEHOLDER = re.compile(r"\{(query|response_1|response_2)\}")
_PACKAGED = Path(__file__).parent / "templates"
_JSON_NAMES = {"question": "query", "answer1": "response_1", "answer2": "response_2"}


@dataclasses.dataclass(frozen=True)
class Template:
    """`system` is used as it is; `user` holds each of {query}, {response_1}, {response_2} once. `thinking_prefix` and
    `direct_prefix` begin the model's turn, with thinking and without; `closing` is put in where a thinking budget is
    used up, and may begin the answer; control tokens are parsed in these three. `verdict_prefix` is plain text
    between the end of thinking and a constrained verdict."""

    name: str
    system: str
    user: str
    thinking_prefix: str = "<think>\n"
    direct_prefix: str = "<think>\n\n</think>\n\n"
    closing: str = "\n</think>\n\n"
    verdict_prefix: str = "\n\n"

    def __post_init__(self):
        for name in _PLACEHOLDERS:
            count = len(re.findall(rf"\{{{name}\}}", self.user))
            if count != 1:
                raise RrmError(f"template {self.name!r}: `user` must hold {{{name}}} once, not {count} times")
        if found := _PLACEHOLDER.search(self.system):
            raise RrmError(f"template {self.name!r}: {found.group()} in `system`, where nothing is filled in")

    @property
    def sha256(self) -> str:
        """Of `system` and `user`, whatever kind of file they came from."""
        content = json.dumps([self.system, self.user], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def prefix(self, thinking: bool) -> str:
        """What begins the model's turn."""
        return self.thinking_prefix if thinking else self.direct_prefix

    def fill(self, query: str, response_1: str, response_2: str) -> str:
        """The user turn. In one pass: what looks like a placeholder inside a value stays what it is."""
        values = {"query": query, "response_1": response_1, "response_2": response_2}
        return _PLACEHOLDER.sub(lambda match: values[match.group(1)], self.user)


def load_template(name_or_path: str | Path) -> Template:
    """A packaged template by name ("default"), a TOML file (see above), or a JSON file.

    The JSON layout is that of released prompts: `system`, `user_template` with {question}, {answer1} and {answer2},
    and an optional `user_suffix` that follows it. Raises RrmError that names the file and what it lacks.
    """
    packaged = _PACKAGED / f"{name_or_path}.toml"
    path = Path(name_or_path)
    if not path.suffix and packaged.is_file():
        path = packaged
    elif not path.is_file():
        known = ", ".join(sorted(file.stem for file in _PACKAGED.glob("*.toml")))
        raise RrmError(f"no template {str(name_or_path)!r}: neither a file nor a packaged template ({known})")
    try:
        text = path.read_bytes().decode("utf-8")
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise RrmError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if not isinstance(fields, dict):
        raise RrmError(f"{path} must hold an object, not {type(fields).__name__}")
    if path.suffix == ".json":
        fields = _from_json(fields, path)
    return _build(fields, path)


def _from_json(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    parts = [_string(fields, "user_template", path), _string({"user_suffix": ""} | dict(fields), "user_suffix", path)]
    user = re.sub(r"\{(question|answer1|answer2)\}", lambda m: f"{{{_JSON_NAMES[m.group(1)]}}}", "".join(parts))
    return {"name": path.stem, "system": _string(fields, "system", path), "user": user}


def _build(fields: Mapping[str, Any], path: Path) -> Template:
    known = [field.name for field in dataclasses.fields(Template)]
    if unknown := sorted(set(fields) - set(known)):
        raise RrmError(f"{path}: unknown field {unknown[0]!r}; a template has {', '.join(known)}")
    given = {"name": path.stem} | {key: _string(fields, key, path) for key in fields}
    for key in ("system", "user"):
        _string(given, key, path)
    return Template(**given)


def _string(fields: Mapping[str, Any], key: str, path: Path) -> str:
    if not isinstance(fields.get(key), str):
        raise RrmError(f"{path}: field {key!r} must be a string" if key in fields else f"{path} lacks {key!r}")
    try:
        fields[key].encode()
    except UnicodeEncodeError:
        raise RrmError(f"{path}: field {key!r} holds a lone surrogate, which is not text") from None
    return fields[key]


def to_toml(template: Template) -> str:
    """The template file, in the form one would write by hand; reading it back gives an equal template."""
    lines = [f"{field.name} = {_toml(getattr(template, field.name))}" for field in dataclasses.fields(Template)]
    return "\n".join(lines) + "\n"


def _toml(text: str) -> str:
    literal = f"'''\n{text}'''"
    try:
        if len(text) > 80 and tomllib.loads(f"x = {literal}") == {"x": text}:
            return literal
    except tomllib.TOMLDecodeError:
        pass
    # A JSON string is a TOML basic string, but for the one control character that JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def as_trained(
    trained: Path, facts: Mapping[str, Any], template: str | Path | None = None, thinking: bool | None = None
) -> tuple[Template, bool]:
    """The template of that name or file, and whether to think before the verdict. What is None is as the model was
    trained here: the template in the file `trained`, where there is one, and the `judge_thinking` among its `facts`;
    else the default one, and True. Raises RrmError."""
    name = template if template is not None else trained if trained.is_file() else "default"
    return load_template(name), bool(facts.get("judge_thinking", True)) if thinking is None else thinking


def tokens_as_trained(facts: Mapping[str, Any]) -> int:
    """The longest completion, in tokens, that the model was trained with here by its `facts`; else 8,192 (paper)."""
    return int(facts.get("judge_max_new_tokens", 8192))


def check_template(
    template: Template, facts: Mapping[str, Any], names: Iterable[str] = (), thinking: bool = True
) -> str | None:
    """A warning when a model is about to judge with another prompt than it was trained with, else None.

    `facts` are what its checkpoint records (`judge_template_sha256`, `judge_thinking`); `names` are what it is
    called (its directory, `_name_or_path` of its config.json), by which released weights are known.
    """
    trained = facts.get("judge_template_sha256")
    if trained is not None and trained != template.sha256:
        return (
            f"these weights were trained with the judge template {trained[:12]}…, but {template.name!r} is "
            f"{template.sha256[:12]}…: expect worse verdicts, or give the template they were trained with"
        )
    if facts.get("judge_thinking") not in (None, thinking):
        before, now = ("without", "with") if thinking else ("with", "without")
        return f"these weights were trained to judge {before} thinking, and are about to judge {now} it"
    released = next((name for name in names if re.search(r"\bRRM-(7|32)B\b", name, re.IGNORECASE)), None)
    if trained is None and released and template.sha256 != RELEASED_SHA256:
        return (
            f"{released} looks like released RRM weights, but the template {template.name!r} is not the one they "
            "were trained with; write that one from their model card (see `rrm template --help`)"
        )
    return None


def check_chat(tokenizer: "Tokenizer", prefix: str) -> str | None:
    """A warning where a chat server is about to be asked, which begins the model's turn itself, else None: a judge
    trained behind a `prefix` that the tokenizer's own chat template does not write may come to no verdict."""
    asked = [("user", "?")]
    if tokenizer.encode_chat(asked) == tokenizer.encode_chat(asked, prefix):
        return None
    return (
        f"a chat server's prompt does not end with {prefix!r}, as this judge's does; unless the server's own chat "
        "template adds it, ask by the completions API"
    )
