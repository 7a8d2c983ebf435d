"""Thinking budgets and constrained verdicts: what is put in, what is refused, and what becomes of the votes."""

import dataclasses
import json
from pathlib import Path

import pytest

from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.forcing import forcing, ran_out, tokens_needed
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import VoteLog
from rrm_jax.judging.summary import summarise
from rrm_jax.judging.template import Template, load_template, to_toml
from rrm_jax.judging.verdict import VERDICT_FORMS, parse_verdict
from rrm_jax.sampling.protocol import Completion, Decoding, Request, Thinking

END, EOS = 151649, 151643  # of R1-Distill-Qwen
BOXED = [(59, 79075, 90, 71703, 220, digit, 92, EOS) for digit in (16, 17)]
PAIR = Pair("x", "q", "good", "bad", label=1)


def rules(tokenizer, template=load_template("default"), **asked):
    asked = {"thinking": True, "budget": None, "constrain": False, "stop_id": tokenizer.stop_ids[0]} | asked
    return forcing(template, tokenizer, **asked)


def test_the_forms_are_what_the_parser_reads():
    assert [parse_verdict(form, thinking=False) for form in VERDICT_FORMS] == [1, 2]


def test_what_is_put_in_for_r1(r1: Tokenizer):
    """Ids by the raw tokenizer: "\\n" 198, "\\n\\n" 271, `</think>` 151649; digits are tokens of their own."""
    assert rules(r1) is None
    budget = rules(r1, budget=2048)
    assert budget == Thinking(END, 2048, (198, END, 271), 100)
    assert tokens_needed(budget) == 2048 + 3 + 100
    both = rules(r1, budget=2048, constrain=True)
    choices = tuple((271, *form) for form in BOXED)
    assert both == Thinking(END, 2048, (198, END), 100, choices)  # blank lines come once, from the choices
    assert tokens_needed(both) == 2048 + 2 + 9
    assert rules(r1, constrain=True) == Thinking(END, choices=choices)
    # The direct prompt ends with the blank lines already.
    assert rules(r1, thinking=False, constrain=True) == Thinking(None, choices=tuple(BOXED))
    for made in (both, rules(r1, constrain=True)):
        for verdict, choice in enumerate(made.choices, start=1):
            assert parse_verdict("hm</think>" + r1.decode(choice[:-1])) == verdict


def test_a_templates_own_words_are_put_in(r1: Tokenizer, tmp_path: Path):
    template = dataclasses.replace(
        load_template("default"), closing="… I must decide.\n</think>\n\nSo: ", verdict_prefix="\n"
    )
    made = rules(r1, template, budget=9, constrain=True)
    assert r1.decode(made.closing) == template.closing
    assert [r1.decode(choice[:-1]) for choice in made.choices] == ["\n" + form for form in VERDICT_FORMS]
    path = tmp_path / "t.toml"
    path.write_text(to_toml(template), encoding="utf-8")
    assert load_template(path) == template
    assert template.sha256 == load_template("default").sha256  # of the prompt, which is the same


def words(directory: Path, *vocabulary: str) -> Tokenizer:
    write_word_tokenizer(directory, vocabulary)
    return Tokenizer.load(directory)


def test_what_cannot_be_is_refused(r1: Tokenizer, letters, real_data: Path, tmp_path: Path):
    with pytest.raises(RrmError, match="a direct judge has none"):
        rules(r1, thinking=False, budget=5)
    qwen2 = Tokenizer.load(real_data / "tokenizers" / "qwen2")
    for asked in ({"budget": 5}, {"constrain": True}):
        with pytest.raises(RrmError, match="no control token </think>"):
            rules(qwen2, **asked)
    assert rules(qwen2, thinking=False, constrain=True).choices[0][-1] == qwen2.stop_ids[0]
    for closing in ("no end", "</think> and </think>"):
        with pytest.raises(RrmError, match="with one </think> in it"):
            rules(letters, dataclasses.replace(load_template("default"), closing=closing), budget=5)
    tiny = words(tmp_path / "tiny", *VERDICT_FORMS)  # has no newline
    with pytest.raises(RrmError, match=r"`closing`, '\\n</think>\\n\\n'.*it writes '<unk></think><unk>'"):
        rules(tiny, budget=5)
    with pytest.raises(RrmError, match="see its verdict_prefix"):
        rules(tiny, constrain=True)
    bare = dataclasses.replace(load_template("default"), closing="</think>", verdict_prefix="")
    assert len(rules(tiny, bare, budget=5, constrain=True).choices[0]) == 2
    uneven = words(tmp_path / "uneven", VERDICT_FORMS[0], *sorted(set(VERDICT_FORMS[1])))
    with pytest.raises(RrmError, match="one token's difference"):
        rules(uneven, bare, constrain=True)


def completion(rules, ids, forced_from, probabilities=None):
    request = Request("r", (1,), Decoding(thinking=rules, stop_ids=(EOS,)))
    return Completion(request, ids, (), "stop", (), forced_from, probabilities)


def test_a_budget_ran_out_only_where_thinking_had_not_ended():
    budget = Thinking(END, 2, (198, END), 100, ((271, 16, EOS), (271, 17, EOS)))
    assert ran_out(completion(budget, (5, 6, 198, END, 271, 16, EOS), 2))
    assert not ran_out(completion(budget, (5, END, 271, 16, EOS), 2))  # only its verdict was constrained
    assert not ran_out(completion(budget, (5, END, EOS), None))
    no_budget = Thinking(END, choices=budget.choices)
    assert not ran_out(completion(no_budget, (5, END, 271, 16, EOS), 2))
    assert not ran_out(completion(Thinking(None, choices=budget.choices), (271, 16, EOS), 0))


class Forced:
    """Takes every budget whole, and is as sure of what is shown first as `sure` says."""

    def __init__(self, tokenizer, sure=0.75):
        self.tokenizer, self.sure, self.requests = tokenizer, sure, []

    def generate(self, requests):
        for request in requests:
            self.requests.append(request)
            how = request.decoding.thinking
            closing = (*self.tokenizer.encode_text("h" * how.budget), *how.closing) if how.budget else ()
            ids = (*closing, *how.choices[self.sure < 0.5])
            chances = (self.sure, 1 - self.sure)
            yield Completion(request, ids, (), "stop", (), how.budget or 0, chances)


def judge(letters, short, generator, **changes) -> Judge:
    return Judge(generator, letters, short, Decoding(max_new_tokens=60), order="both", **changes)


def test_votes_have_probabilities_in_the_pairs_own_order(letters, short, tmp_path: Path):
    asked = {"thinking_budget": 4, "constrain_verdict": True}
    drawn = Forced(letters)
    one = judge(letters, short, drawn, **asked)
    with VoteLog(tmp_path / "log.jsonl") as log:
        (judgment,) = one.judge([PAIR], log)
        (again,) = judge(letters, short, Forced(letters), **asked).judge([PAIR], log)
    assert again == judgment
    assert [(v.order, v.verdict, v.probability, v.forced) for v in judgment.votes] == [
        ("12", 1, 0.75, True),
        ("21", 2, 0.25, True),
    ]
    assert (judgment.soft_vote, judgment.winner) == (0.5, None)
    assert judgment.votes[0].text == "hhhh\n</think>\n\n\\boxed{Assistant 1}"
    row = judgment.to_row()
    assert row["probability"] == 0.5
    assert json.loads(json.dumps(row)) == row
    assert "forced by the thinking budget: 2)" in summarise([row], both_orders=True).lines()[1]
    assert {request.decoding.thinking.budget for request in drawn.requests} == {4}


def test_a_direct_judge_can_be_constrained(letters, short):
    (judgment,) = judge(letters, short, Forced(letters, 0.25), thinking=False, constrain_verdict=True).judge([PAIR])
    assert [(v.verdict, v.probability, v.forced) for v in judgment.votes] == [(2, 0.25, False), (1, 0.75, False)]
    assert judgment.votes[0].text == "\\boxed{Assistant 2}"


def test_a_soft_vote_is_the_mean_of_the_votes_that_have_one(letters, short):
    class Some(Forced):
        def generate(self, requests):
            for done in super().generate(requests):
                yield dataclasses.replace(done, choice_probabilities=(0.9, 0.1) if done.request.sample == 1 else None)

    (judgment,) = judge(letters, short, Some(letters), votes=2, constrain_verdict=True).judge([PAIR])
    known = [vote.probability for vote in judgment.votes if vote.probability is not None]
    assert known == pytest.approx([0.9, 0.1], abs=1e-12)
    assert judgment.soft_vote == pytest.approx(0.5, abs=1e-12)


def test_a_budget_must_fit(letters, short):
    with pytest.raises(ValueError, match="exceed max_new_tokens"):
        Judge(Forced(letters), letters, short, Decoding(max_new_tokens=10), thinking_budget=8)


def test_a_template_has_defaults_for_both(tmp_path: Path):
    path = tmp_path / "t.toml"
    path.write_text('system = ""\nuser = "{query} {response_1} {response_2}"', encoding="utf-8")
    template = load_template(path)
    assert (template.closing, template.verdict_prefix) == ("\n</think>\n\n", "\n\n")
    assert load_template("default") == dataclasses.replace(
        load_template("default"), closing=Template.closing, verdict_prefix=Template.verdict_prefix
    )


def test_new_tokens_that_a_verdict_needs_by_hand():
    assert tokens_needed(Thinking(7, 100, (1, 7, 3), 10, ())) == 113
    assert tokens_needed(Thinking(7, 100, (1, 7, 3), 10, ((1,) * 4, (2,) * 4))) == 107
    assert tokens_needed(Thinking(7, None, (), 10, ())) == 10
