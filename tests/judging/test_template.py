"""Templates are data: loaded from three kinds of files, written back byte for byte, filled in once."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.errors import RrmError
from rrm_jax.judging.template import RELEASED_SHA256, Template, check_template, load_template, to_toml

USER = "{query} | {response_1} | {response_2}"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=120)


def test_the_default_has_the_papers_structure():
    template = load_template("default")
    headings = ["## Query", "### Assistant 1", "### Assistant 2", "## Analysis"]
    positions = [template.user.index(heading) for heading in headings]
    assert positions == sorted(positions)
    assert template.user.rstrip().endswith("\\boxed{Assistant 2}.")
    assert "\\boxed{Assistant 1}" in template.system
    assert template.prefix(True) == "<think>\n"
    assert template.prefix(False) == "<think>\n\n</think>\n\n"
    assert template.sha256 != RELEASED_SHA256


def test_the_released_prompt_is_known_by_its_hash(real_data: Path, tmp_path: Path):
    template = load_template(real_data / "rrm_official" / "judge_prompt.json")
    assert template.sha256 == RELEASED_SHA256
    assert template.user.startswith("## Query\n\n{query}\n\n## Assistant responses")
    path = tmp_path / "released.toml"
    path.write_text(to_toml(template), encoding="utf-8", newline="\n")
    assert load_template(path) == template
    assert "\\boxed{Assistant 1}" in path.read_text(encoding="utf-8")  # literal strings: no doubled backslashes


@given(system=TEXT, before=TEXT, after=TEXT)
def test_toml_round_trip(tmp_path_factory, system: str, before: str, after: str):
    try:
        template = Template("t", system, before + USER + after, "<think>\n", after)
    except RrmError:
        return  # a placeholder too many
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_bytes(to_toml(template).encode())
    assert load_template(path) == template


@given(query=TEXT, first=TEXT, second=TEXT)
def test_filling_is_one_pass(query: str, first: str, second: str):
    values = [f"{query}{{response_1}}", f"{{response_2}}{first}{{query}}", f"{second}{{query}}{{0}}%s\\g<1>"]
    filled = Template("t", "", "Q{query}A{response_1}B{response_2}C{x}").fill(*values)
    assert filled == f"Q{values[0]}A{values[1]}B{values[2]}C{{x}}"


def test_the_hash_covers_exactly_system_and_user():
    base = Template("a", "s", USER)
    assert base.sha256 == Template("b", "s", USER, "other\n", "").sha256
    assert base.sha256 != Template("a", "s ", USER).sha256
    assert base.sha256 != Template("a", "s", USER + "\n").sha256
    assert base.sha256 != Template("a", "s" + USER[:1], USER).sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('system = "s"\nuser = "{query} {response_1}"', r"must hold \{response_2\} once, not 0"),
        ('system = "s"\nuser = "{query} {query} {response_1} {response_2}"', "once, not 2"),
        ('system = "{query}"\nuser = "{query} {response_1} {response_2}"', "nothing is filled in"),
        ('user = "{query} {response_1} {response_2}"', "lacks 'system'"),
        ('system = 3\nuser = "{query} {response_1} {response_2}"', "'system' must be a string"),
        ('system = "s"\nusr = "u"', "unknown field 'usr'"),
        ("system = ", "not valid TOML"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, text: str, message: str):
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RrmError, match=message):
        load_template(path)


def test_wrong_json_and_missing_files(tmp_path: Path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"system": "s"}), encoding="utf-8")
    with pytest.raises(RrmError, match="lacks 'user_template'"):
        load_template(path)
    path.write_text(json.dumps({"system": "\ud800", "user_template": "{question}{answer1}{answer2}"}))
    with pytest.raises(RrmError, match="lone surrogate"):
        load_template(path)
    with pytest.raises(RrmError, match=r"no template 'nope'.*default"):
        load_template("nope")


def test_a_warning_when_weights_and_template_do_not_belong_together(real_data: Path):
    default, released = load_template("default"), load_template(real_data / "rrm_official" / "judge_prompt.json")
    assert check_template(default, {}, ["my-judge"]) is None
    assert check_template(default, {"judge_template_sha256": default.sha256}, ["RRM-7B"]) is None
    assert "trained with the judge template" in str(check_template(released, {"judge_template_sha256": default.sha256}))
    assert "released RRM weights" in str(check_template(default, {}, ["models", "microsoft/RRM-7B"]))
    assert "released RRM weights" in str(check_template(default, {}, ["rrm-32b"]))
    assert check_template(released, {}, ["RRM-7B"]) is None
    assert check_template(default, {}, ["RRM-70B"]) is None
    facts = {"judge_template_sha256": default.sha256, "judge_thinking": False}
    assert "without thinking" in str(check_template(default, facts, thinking=True))
    assert check_template(default, facts, thinking=False) is None
