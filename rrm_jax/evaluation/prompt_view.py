"""Records as the model sees them: a prompt's tokens, with what is a control token told from what merely spells one.

Every text of the data is untrusted: it is printed without what a terminal or a browser would obey, and never as markup.
The brackets ⟦ ⟧ are the page's own, and escaped in the data's text: no colour is needed to know a control token.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.records import Candidates, Pair
from rrm_jax.data.stream import PairStream, Part
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.evaluation.ranking_report import readable, shown
from rrm_jax.judging.prompt import Fitted, fit
from rrm_jax.judging.template import Template


@dataclasses.dataclass(frozen=True)
class View:
    """How a judge is shown pairs."""

    tokenizer: Tokenizer
    template: Template
    max_prompt_tokens: int
    thinking: bool = True

    def fit(self, pair: Pair) -> Fitted:
        """The pair's prompt; thinking in its responses is not shown."""
        texts = (pair.query, strip_thinking(pair.response_1), strip_thinking(pair.response_2))
        return fit(self.template, self.tokenizer, texts, self.max_prompt_tokens, self.thinking)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a trainer's stream a record is: the seed, and which part of how many."""

    seed: int = 0
    part: int = 0
    parts: int = 1

    def first_shown(self, pair: Pair) -> Pair:
        """The pair in the order of the stream's first epoch."""
        if self.parts == 1:
            return PairStream([pair], self.seed)[0]
        stream = PairStream([Part([pair])] * self.parts, self.seed)
        return stream.at(next(place for place in map(stream.place, itertools.count()) if place.part == self.part))


def print_example(console: Console, record: Any, view: View | None, place: Place, most: int) -> None:
    """A record; a pair, or the first two of several candidates, as the judge's prompt in the order that a trainer's
    first epoch shows. Ordinary text loses its middle beyond `most` characters (0: never)."""
    if isinstance(record, dict):
        facts = [f"{name} {record[name]}" for name in ("winner", "label") if name in record]
        _print_head(console, str(record["id"]), facts)
        for vote in record["votes"][:1]:
            console.print(f"vote 1 of {len(record['votes'])}, order {vote['order']}, verdict {vote['verdict']}:")
            console.print(_ordinary(vote["text"], most), soft_wrap=True)
        return
    pair = _as_pair(record)
    if view is None or pair is None:
        facts = [shown(source, 60)] if (source := getattr(record, "source", "")) else []
        _print_head(console, record.id, facts)
        for name, value in _fields(record):
            console.print(Text.assemble((f"⟦{name}⟧ ", "bold"), _ordinary(value, most)), soft_wrap=True)
        return
    turned = place.first_shown(pair)
    fitted = view.fit(turned)
    text = prompt_text(view.tokenizer, fitted.ids, most)
    facts = [shown(pair.source, 60)] * bool(pair.source) + [f"{len(fitted.ids)} tokens"]
    facts += ["cut to fit"] * fitted.truncated + ["shown in the other order"] * (turned is not pair)
    facts += [f"label here {turned.label}"] * (turned.label is not None)
    _print_head(console, pair.id, facts)
    console.print(text, soft_wrap=True)


def _as_pair(record: Any) -> Pair | None:
    if isinstance(record, Candidates) and len(record.responses) > 1:
        return Pair(record.id, record.query, record.responses[0], record.responses[1])
    return record if isinstance(record, Pair) else None


def _fields(record: Any) -> Iterable[tuple[str, str]]:
    for name, value in vars(record).items():
        if name not in ("id", "source") and value is not None:
            yield from (
                ((f"{name}[{at}]", str(x)) for at, x in enumerate(value))
                if isinstance(value, tuple)
                else [(name, str(value))]
            )


def _print_head(console: Console, name: str, facts: Sequence[str]) -> None:
    console.print(Text(" · ".join([f"example {shown(name, 80)}", *facts]), style="bold cyan"))


def prompt_text(tokenizer: Tokenizer, ids: Iterable[int], most: int = 0) -> Text:
    """A prompt's tokens: control tokens in ⟦ ⟧, and ordinary text, in which what spells one is underlined."""
    text = Text()
    for piece, control in tokenizer.spans(ids):
        if control:
            text.append(f"⟦{readable(piece)}⟧", style="bold reverse")
        else:
            text.append_text(_ordinary(piece, most, tokenizer))
    return text


def _ordinary(piece: str, most: int, tokenizer: Tokenizer | None = None) -> Text:
    if most and len(piece) > most:
        left_out = Text(f"⟦… {len(piece) - most} characters …⟧", style="dim")
        head, tail = piece[: most - most // 2], piece[len(piece) - most // 2 :]
        return Text.assemble(_ordinary(head, 0, tokenizer), left_out, _ordinary(tail, 0, tokenizer))
    parts = [(piece, False)]
    if tokenizer is not None:
        spelt = list(tokenizer.spans(tokenizer.encode_control(piece)))
        if "".join(part for part, _ in spelt) == piece:
            parts = spelt
    text = Text()
    for part, spells in parts:
        escaped = readable(part).replace("⟦", "\\u27e6").replace("⟧", "\\u27e7")
        text.append(escaped, style="underline yellow" if spells else "")
    return text
