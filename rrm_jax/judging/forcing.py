"""Bringing a judge to its verdict: thinking that is closed when its budget is used up, verdicts that cannot be invalid.

What is put in is the template's: `closing` after thinking that was cut, `verdict_prefix` before a verdict of which only
the two forms are possible. The model's probability of the one form against the other, read where the two part, makes a
soft vote of each constrained verdict.
"""

from rrm_jax.data.tokenizer import END_THINK, Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.template import Template
from rrm_jax.judging.verdict import VERDICT_FORMS
from rrm_jax.sampling.protocol import Completion, Thinking

ANSWER_TOKENS = 100  # for the verdict after a budget (docs/method.md)


def forcing(
    template: Template,
    tokenizer: Tokenizer,
    *,
    thinking: bool,
    budget: int | None,
    constrain: bool,
    stop_id: int,
) -> Thinking | None:
    """The protocol's form of a thinking budget in tokens and of a constrained verdict; None when neither is asked for.

    Without `thinking` (DirectJudge) the prompt has ended it, and there is nothing to bound. A constrained verdict ends
    with `stop_id`. Raises RrmError when the tokenizer cannot write what has to be put in.
    """
    if budget is None and not constrain:
        return None
    if not thinking:
        if budget is not None:
            raise RrmError("a thinking budget bounds thinking, and a direct judge has none; leave one of them out")
        return Thinking(None, choices=_choices(template, tokenizer, template.direct_prefix, stop_id))
    end_id = tokenizer.control_id(END_THINK)
    if end_id is None:
        raise RrmError(
            f"the tokenizer has no control token {END_THINK}, so where thinking ends cannot be seen; thinking budgets "
            "and constrained verdicts need one (or --direct)"
        )
    choices = _choices(template, tokenizer, "", stop_id) if constrain else ()
    if budget is None:
        return Thinking(end_id, choices=choices)
    # What a choice begins with is not written twice.
    text = template.closing.removesuffix(template.verdict_prefix) if constrain else template.closing
    closing = tokenizer.encode_control(text)
    if closing.count(end_id) != 1 or tokenizer.decode(closing) != text:
        raise RrmError(
            f"template {template.name!r}: the tokenizer must write `closing`, {text!r}, as it stands, with one "
            f"{END_THINK} in it; it writes {tokenizer.decode(closing)!r}"
        )
    return Thinking(end_id, budget, tuple(closing), ANSWER_TOKENS, choices)


def tokens_needed(rules: Thinking) -> int:
    """The new tokens that a whole budget, its closing and an answer take; just the answer without a budget."""
    longest = max((len(choice) for choice in rules.choices), default=rules.answer_tokens)
    return (rules.budget or 0) + len(rules.closing) + longest


def ran_out(completion: Completion) -> bool:
    """Whether its thinking budget was used up, so that the verdict was forced."""
    rules, forced_from = completion.request.decoding.thinking, completion.forced_from
    if rules is None or rules.budget is None or forced_from is None:
        return False
    return rules.end_id not in completion.token_ids[:forced_from]


def _choices(template: Template, tokenizer: Tokenizer, before: str, stop_id: int) -> tuple[tuple[int, ...], ...]:
    prefix = "" if before.endswith(template.verdict_prefix) else template.verdict_prefix
    texts = [prefix + form for form in VERDICT_FORMS]
    one, two = (tokenizer.encode_text(text) for text in texts)
    parting = sum(a != b for a, b in zip(one, two, strict=False))
    if [tokenizer.decode(one), tokenizer.decode(two)] != texts or len(one) != len(two) or parting != 1:
        raise RrmError(
            f"the tokenizer does not write {texts[0]!r} and {texts[1]!r} as they stand with one token's difference, "
            f"which a constrained verdict needs (template {template.name!r}: see its verdict_prefix)"
        )
    return (*one, stop_id), (*two, stop_id)
