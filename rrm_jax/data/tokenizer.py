"""Text ⇄ token ids for a Hugging Face model directory, with one rule: untrusted text never becomes control tokens.

Two tokenizers are made of the same files. The full one knows every added token (`<think>`, role markers, ends of
turns); the plain one has them all removed, so that text which merely spells them is encoded as ordinary text, with
the ids it would have had anyway. Contents of a chat go through the plain one, the chat template's own words are
cut at the added tokens, and what is left between two control tokens is encoded as one piece, so that merges across
the borders of template and contents are those of the rendered prompt.
"""

import functools
import hashlib
import itertools
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    import jinja2
    import tokenizers

THINK, END_THINK = "<think>", "</think>"
_MOST_RENDERED = 64


class Tokenizer:
    """`bos_id` is None when the model has none; `eos_id` ends a turn; `stop_ids` are all that end a generation,
    ascending; `vocab_size` counts added tokens (a model's embedding may have more rows); `unknown_id` stands for
    text that the vocabulary lacks, None where it has all (byte-level ones); `fingerprint` is a SHA-256 of all that
    decides the ids."""

    def __init__(
        self,
        definition: str,
        settings: dict[str, Any],
        chat_template: str | None = None,
        stop_ids: Iterable[int] = (),
        name: str = "the tokenizer",
    ):
        """`definition` is the text of a tokenizer.json, `settings` a tokenizer_config.json. See `load`."""
        self._name, self._chat_template = name, chat_template
        self._nonce = secrets.token_hex(16)
        self._rendered: dict[tuple[str, ...], list[str]] = {}
        self._full, self._plain, self._control_ids = _read(definition, name)
        longest_first: list[str] = sorted(self._control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(token) for token in longest_first) or "(?!)")
        self._reserved = frozenset(self._control_ids.values())
        self.vocab_size = self._full.get_vocab_size(with_added_tokens=True)
        self._special = {
            key: text
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
            if (text := _token_text(settings.get(key))) is not None
        }
        self.bos_id = self._id_of("bos_token")
        unknown = getattr(self._plain.model, "unk_token", None)
        self.unknown_id: int | None = None if unknown is None else self._plain.token_to_id(unknown)
        stops = set(stop_ids)
        eos_id = self._id_of("eos_token")
        if eos_id is None and not stops:
            raise RrmError(f"{name}: neither tokenizer_config.json nor config.json names an end token (eos)")
        self.eos_id: int = min(stops) if eos_id is None else eos_id
        self.stop_ids: tuple[int, ...] = tuple(sorted(stops | {self.eos_id}))
        adds_bos = settings.get("add_bos_token")
        if adds_bos is None:
            adds_bos = self.bos_id is not None and self._full.encode("").ids[:1] == [self.bos_id]
        self._adds_bos = bool(adds_bos)
        decides = [definition, chat_template, self._special, self._adds_bos]
        self.fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
        for token in self._control_ids:
            self.encode_text(token)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Reads tokenizer.json, or Qwen2's vocab.json and merges.txt, with the configuration files beside it.

        Raises RrmError when the directory has no tokenizer.
        """
        directory = Path(directory)
        settings = _read_json(directory / "tokenizer_config.json")
        for key, value in _read_json(directory / "special_tokens_map.json").items():
            settings.setdefault(key, value)
        stops: set[int] = set()
        for file in ("generation_config.json", "config.json"):
            eos = _read_json(directory / file).get("eos_token_id")
            stops.update(eos if isinstance(eos, list) else [] if eos is None else [eos])
        definition = directory / "tokenizer.json"
        if definition.is_file():
            text = definition.read_text(encoding="utf-8")
        elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            text = _convert_qwen2(directory, settings)
        else:
            raise RrmError(
                f"{directory} holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt; "
                "copy the files of the model's tokenizer there"
            )
        return cls(text, settings, _find_chat_template(directory, settings), stops, str(directory))

    def _id_of(self, key: str) -> int | None:
        text = self._special.get(key)
        if text is None:
            return None
        found = self._full.token_to_id(text)
        if found is None:
            raise RrmError(f"{self._name}: {key} is {text!r}, which the vocabulary lacks")
        return found

    def control_id(self, token: str) -> int | None:
        """The id of an added token, or None when this tokenizer has no such control token."""
        return self._control_ids.get(token)

    def encode_text(self, text: str) -> list[int]:
        """Ids of untrusted text: whatever it spells, no control token is among them."""
        return self._encode_plain(text).ids

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) characters of `text` that each id of `encode_text(text)` covers.

        Tokens that share one character (a character of several bytes) have the same span.
        """
        return self._encode_plain(text).offsets

    def _encode_plain(self, text: str) -> "tokenizers.Encoding":
        try:
            encoding = self._plain.encode(text, add_special_tokens=False)
        except TypeError:
            raise RrmError("text with a lone surrogate cannot be encoded") from None
        if not self._reserved.isdisjoint(encoding.ids):
            raise RrmError(
                f"{self._name}: a control token is reachable by ordinary text, so untrusted text is not safe with "
                "it; tokenizers whose control tokens are in their model's own vocabulary are not supported"
            )
        return encoding

    def encode_control(self, text: str) -> list[int]:
        """Ids of trusted text: control tokens that it spells are parsed. No BOS is added."""
        return self._full.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens spelled out. Ids above the vocabulary (unused rows of a model's
        embedding) have no text; bytes that are not UTF-8 become U+FFFD."""
        return self._full.decode(list(ids), skip_special_tokens=False)

    def spans(self, ids: Iterable[int]) -> Iterator[tuple[str, bool]]:
        """The text of `ids` in pieces: (a control token, True), and (the ordinary text between two of them, False)."""
        for control, run in itertools.groupby(ids, self._reserved.__contains__):
            if control:
                yield from ((self.decode([token]), True) for token in run)
            else:
                yield self.decode(run), False

    def encode_chat(self, messages: Sequence[tuple[str, str]], suffix: str = "") -> list[int]:
        """Ids of a conversation of (role, content) up to where the model writes, beginning with one BOS if it has one.

        Contents are plain text, whatever they spell; the template's own words and `suffix` are control. A suffix
        that the template's generation prompt ends with, or begins to write from its first control token on (as
        newer R1 templates do with `<think>\\n`), is not repeated. The template sees placeholders, so it cannot edit
        contents: R1's own would drop the thinking of earlier assistant turns; leave that out beforehand.

        Raises RrmError without a chat template, or when the template does not show each message exactly once.
        """
        parts = self._parts(messages)
        parts.append((self._missing(suffix, parts[-1][0]), True))
        ids: list[int] = []
        ordinary = ""
        for text, own in parts:
            if not own:
                ordinary += text
                continue
            at = 0
            for match in self._control.finditer(text):
                ids += _ids_of(self, ordinary + text[at : match.start()])
                ids.append(self._control_ids[match.group()])
                ordinary, at = "", match.end()
            ordinary += text[at:]
        ids += _ids_of(self, ordinary)
        return self._with_one_bos(ids)

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        if self.bos_id is None:
            return ids
        leading = next((at for at, token in enumerate(ids) if token != self.bos_id), len(ids))
        return [self.bos_id, *ids[leading:]] if leading or self._adds_bos else ids

    def _missing(self, suffix: str, written: str) -> str:
        if written.endswith(suffix):
            return ""
        first = self._control.match(suffix)
        shortest = first.end() if first else len(suffix)
        for size in range(len(suffix) - 1, shortest - 1, -1):
            if written.endswith(suffix[:size]):
                return suffix[size:]
        return suffix

    def _parts(self, messages: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
        """The prompt as (text, is it the template's own) parts; the last is the template's own."""
        roles = tuple(role for role, _ in messages)
        rendered = self._rendered.get(roles)
        if rendered is None:
            if len(self._rendered) >= _MOST_RENDERED:  # a server is asked for any sequence of roles
                self._rendered.clear()
            rendered = self._rendered[roles] = self._render(roles)
        first, *rest = rendered
        parts = [(first, True)]
        for at, own in zip(rest[::2], rest[1::2], strict=True):
            parts += [(messages[int(at)][1], False), (own, True)]
        return parts

    def _render(self, roles: Sequence[str]) -> list[str]:
        """The template's own text, a message's number, the text between, … and its text at the end.

        The template is given placeholders, so that contents never meet it: nothing in them can be taken for its own.
        """
        if self._chat_template is None:
            raise RrmError(
                f"{self._name} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json), so a conversation cannot be written for it"
            )
        shown = [{"role": role, "content": f"x{self._nonce}x{at}x"} for at, role in enumerate(roles)]
        try:
            template = _compile(self._chat_template)
            text = template.render(messages=shown, add_generation_prompt=True, **self._special)
        except Exception as error:  # the template is a program from the model's directory
            raise RrmError(f"{self._name}: the chat template fails: {error}") from None
        pieces = re.split(f"x{self._nonce}x([0-9]+)x", text)
        if sorted(map(int, pieces[1::2])) != list(range(len(roles))):
            raise RrmError(
                f"{self._name}: the chat template does not show each of the messages ({', '.join(roles)}) exactly once"
            )
        return pieces


@functools.lru_cache(maxsize=8)
def _ids_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """`encode_text`: a system turn, half of a short prompt, comes again with every conversation."""
    return tuple(tokenizer.encode_text(text))


def _read(definition: str, name: str) -> "tuple[tokenizers.Tokenizer, tokenizers.Tokenizer, dict[str, int]]":
    """The tokenizer, the same without control tokens, for text that may spell them, and the control tokens' ids."""
    import tokenizers

    try:
        full = tokenizers.Tokenizer.from_str(definition)
        facts = json.loads(definition)
        control: dict[str, int] = {token["content"]: token["id"] for token in facts["added_tokens"]}
        plain = tokenizers.Tokenizer.from_str(json.dumps(facts | {"added_tokens": [], "post_processor": None}))
    except Exception as error:  # the library raises bare Exceptions
        raise RrmError(f"{name}: tokenizer.json cannot be used: {error}") from None
    for tokenizer in (full, plain):  # a saved setting would cut prompts silently
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return full, plain, control


def _compile(chat_template: str) -> "jinja2.Template":
    """In the environment that chat templates are written for (transformers'), without access to anything else."""
    import jinja2
    import jinja2.sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    return environment.from_string(chat_template, globals={"raise_exception": raise_exception})


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RrmError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RrmError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _token_text(token: Any) -> str | None:
    """Token settings are a string, or an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token


def _find_chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    """The newest form wins: chat_template.jinja, then chat_template.json, then tokenizer_config.json."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(directory / "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise RrmError(f"{directory} has chat templates named {', '.join(template)}, but none named default")
        template = template["default"]
    return template


def _convert_qwen2(directory: Path, settings: dict[str, Any]) -> str:
    """The tokenizer.json that transformers makes of vocab.json and merges.txt."""
    kind = settings.get("tokenizer_class", "Qwen2Tokenizer")
    if kind not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise RrmError(
            f"{directory} has no tokenizer.json, and its tokenizer_class {kind!r} is not Qwen2's; save it with "
            "transformers' save_pretrained, which writes tokenizer.json"
        )
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    return Qwen2Tokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer.to_str()
