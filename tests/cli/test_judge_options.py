"""Which template and mode a judge gets when none is asked for."""

import types

import pytest

from rrm_jax.cli.judge_options import JudgeOptions, open_judge
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.judging.template import load_template
from rrm_jax.quickstart import world


@pytest.fixture
def assets(tmp_path):
    write_word_tokenizer(tmp_path, world.WORDS)
    return tmp_path


def _open(assets, facts, template=None, direct=None, **options):
    model = types.SimpleNamespace(
        assets=assets, tokenizer=Tokenizer.load(assets), facts=facts, names=["m"], max_positions=9000, identity="f",
        check=lambda decoding: None, takes_messages=False,
    )  # fmt: skip
    options = {"temperature": 1.0, "max_new_tokens": 8, "max_prompt_tokens": 2048} | options
    return open_judge(model, JudgeOptions(template=template, direct=direct, **options)).settings


def test_a_model_brings_its_own_template_and_mode(assets, capsys):
    plain = _open(assets, {})
    assert plain["template"] == load_template("default").sha256
    assert plain["thinking"] is True
    (assets / "judge_template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    own = load_template(assets / "judge_template.toml").sha256
    facts = {"judge_template_sha256": own, "judge_thinking": False}
    trained = _open(assets, facts)
    assert (trained["template"], trained["thinking"]) == (own, False)
    assert "warning" not in capsys.readouterr().err
    asked = _open(assets, facts, template="default", direct=False)
    assert (asked["template"], asked["thinking"]) == (plain["template"], True)
    assert "trained with the judge template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 8192),
        ({"thinking_budget": 50}, 50 + 3 + 100),  # "\n", </think>, "\n\n"
        ({"thinking_budget": 50, "constrain_verdict": True}, 50 + 2 + 3),  # "\n\n", the form, the end token
        ({"constrain_verdict": True}, 8192),
        ({"constrain_verdict": True, "direct": True}, 2),
        ({"thinking_budget": 50, "max_new_tokens": 900}, 900),
    ],
)
def test_new_tokens_are_what_is_needed(tmp_path, options, most):
    write_word_tokenizer(tmp_path, ["\n", "\n\n", "\\boxed{Assistant 1}", "\\boxed{Assistant 2}"])
    assert _open(tmp_path, {}, **{"max_new_tokens": None, **options})["max_new_tokens"] == most
    trained = _open(tmp_path, {"judge_max_new_tokens": 70}, **{"max_new_tokens": None, **options})
    assert trained["max_new_tokens"] == (70 if most == 8192 else most)
