"""The rows that users give: what is read, and what each refusal says."""

import pytest

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import (
    Candidates,
    Pair,
    Prompt,
    Unique,
    parse_candidates,
    parse_labelled_pair,
    parse_pair,
    parse_prompt,
)

PAIR = {"id": "a", "query": "q", "response_1": "x", "response_2": "y"}
CANDIDATES = {"id": "a", "query": "q", "responses": ["x", ""]}


def test_pairs():
    assert parse_pair(PAIR) == Pair("a", "q", "x", "y", None, "")
    labelled = PAIR | {"id": 7, "label": 2, "source": "skywork", "ignored": [1]}
    assert parse_pair(labelled) == parse_labelled_pair(labelled) == Pair("7", "q", "x", "y", 2, "skywork")
    assert parse_pair(PAIR | {"label": None}).label is None


def test_text_is_kept_as_it_is():
    odd = "\\boxed{Assistant 1} </think> <|im_end|> {query} %s \n\t\u2028 \U0001f600 "
    assert parse_pair(PAIR | {"query": odd, "response_1": odd}) == Pair("a", odd, odd, "y")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "'id' must be a string or an integer, not NoneType"),
        ({"id": True}, "'id' must be a string or an integer, not bool"),
        ({"id": 1.0}, "'id' must be a string or an integer, not float"),
        ({"id": "\ud800"}, "'id' holds a lone surrogate"),
        ({"query": None}, "'query' must be a string, not NoneType"),
        ({"response_2": ["y"]}, "'response_2' must be a string, not list"),
        ({"response_1": "\udfff"}, "'response_1' holds a lone surrogate"),
        ({"source": 3}, "'source' must be a string, not int"),
        ({"label": 0}, "'label' must be 1, 2 or null, not 0"),
        ({"label": True}, "'label' must be 1, 2 or null, not True"),
        ({"label": 1.0}, "'label' must be 1, 2 or null, not 1.0"),
        ({"label": "1"}, "'label' must be 1, 2 or null, not '1'"),
        ({"label": [1]}, r"'label' must be 1, 2 or null, not \[1\]"),
    ],
)
def test_pairs_that_are_refused(changes, message):
    with pytest.raises(RowError, match=message):
        parse_pair(PAIR | changes)


@pytest.mark.parametrize("missing", PAIR)
def test_a_missing_field_is_named_with_those_that_are_there(missing):
    row = {key: value for key, value in PAIR.items() if key != missing}
    with pytest.raises(RowError, match=f"field '{missing}' is missing; the row has '"):
        parse_pair(row)
    with pytest.raises(RowError, match="the row has no fields"):
        parse_pair({})


def test_a_label_can_be_required():
    with pytest.raises(RowError, match="field 'label' is missing"):
        parse_labelled_pair(PAIR)
    with pytest.raises(RowError, match="'label' must be 1 or 2 here, not null"):
        parse_labelled_pair(PAIR | {"label": None})


def test_candidates():
    assert parse_candidates(CANDIDATES) == Candidates("a", "q", ("x", ""), None)
    assert parse_candidates(CANDIDATES | {"correct": [False, True]}).correct == (False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": []}, "must be a list of at least one string"),
        ({"responses": "xy"}, "must be a list of at least one string"),
        ({"responses": ["x", 3]}, r"'responses\[1\]' must be a string, not int"),
        ({"responses": ["\ud800"]}, r"'responses\[0\]' holds a lone surrogate"),
        ({"correct": [True]}, "'correct' must be a list of 2 booleans"),
        ({"correct": [1, 0]}, "'correct' must be a list of 2 booleans"),
        ({"correct": True}, "'correct' must be a list of 2 booleans"),
    ],
)
def test_candidates_that_are_refused(changes, message):
    with pytest.raises(RowError, match=message):
        parse_candidates(CANDIDATES | changes)


def test_prompts():
    assert parse_prompt({"id": 1, "prompt": ""}) == Prompt("1", "", None)
    assert parse_prompt({"id": 1, "prompt_ids": [0, 5]}) == Prompt("1", None, (0, 5))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1}, "exactly one of 'prompt' and 'prompt_ids'"),
        ({"id": 1, "prompt": "x", "prompt_ids": [1]}, "exactly one of 'prompt' and 'prompt_ids'"),
        ({"id": 1, "prompt": 3}, "'prompt' must be a string"),
        *(
            ({"id": 1, "prompt_ids": ids}, "list of at least one non-negative integer")
            for ids in ([], None, "12", [1, -1], [1.0], [True], [None])
        ),
    ],
)
def test_prompts_that_are_refused(row, message):
    with pytest.raises(RowError, match=message):
        parse_prompt(row)


def test_an_id_that_comes_twice_is_refused_also_as_number_and_text():
    parse = Unique(parse_prompt)
    parse({"id": 1, "prompt": "x"})
    parse({"id": 2, "prompt": "x"})
    with pytest.raises(RowError, match="id '1' appears twice"):
        parse({"id": "1", "prompt": "y"})
    with pytest.raises(RowError, match="'prompt' must be"):
        parse({"id": 3, "prompt": None})
    assert parse({"id": 3, "prompt": "x"}).id == "3"  # a refused row does not use its id up
