"""What counts as a verdict, and what does not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.verdict import parse_verdict, verdict_of_completion, written_ids
from rrm_jax.sampling.protocol import Completion, Decoding, Request

ONE, TWO = "\\boxed{Assistant 1}", "\\boxed{Assistant 2}"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (f"hm</think>{ONE}", 1),
        (f"hm</think>\n\nSo {TWO}.", 2),
        (f"{ONE}</think>{TWO}", 2),  # the thinking's box does not count
        (f"{TWO}</think>no box", None),
        (ONE, None),  # never stopped thinking
        (f"</think>{ONE}</think>hm", None),  # after the last
        (f"</think>{ONE} no, {TWO}", 2),  # the last box
        (f"</think>{ONE} no, {TWO} \\boxed{{}}", None),
        ("</think>\\boxed{ Assistant 1\n}", 1),
        ("</think>\\boxed{Assistant 3}", None),
        ("</think>\\boxed{assistant 1}", None),
        ("</think>\\boxed{Assistant  1}", None),
        ("</think>\\boxed{\\text{Assistant 1}}", None),
        ("</think>\\boxed{{Assistant 1}}", None),
        ("</think>\\boxed{\\boxed{Assistant 1}}", 1),
        ("</think>boxed{Assistant 1}", None),
        ("</think>\\boxed {Assistant 1}", None),
        ("</think>\\boxed{Assistant 1", None),
        (f"</think>{ONE} then \\boxed{{Assistant 2", 1),  # the last one that is balanced
        (f"</think>}}}}{ONE}", 1),
        (f"</think>{{{{{ONE}", 1),
        ("</think>Assistant 1", None),
        ("", None),
    ],
)
def test_text(text: str, verdict):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"), [(ONE, 1), (f"{ONE}</think>{TWO}", 2), (f"{ONE}</think>", None), ("", None)]
)
def test_direct(text: str, verdict):
    assert parse_verdict(text, thinking=False) == verdict


@given(st.text("\\boxed{}Assistant 12", max_size=60))
def test_boxes_match_a_plain_reading(text: str):
    """Against brace counting from each `\\boxed{`, last first."""
    expected = None
    for start in range(len(text) - 1, -1, -1):
        if not text.startswith("\\boxed{", start):
            continue
        depth = 0
        for end in range(start + 6, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                content = text[start + 7 : end].strip()
                expected = {"Assistant 1": 1, "Assistant 2": 2}.get(content)
                break
        else:
            continue
        break
    assert parse_verdict("</think>" + text) == expected


def test_a_repeating_model_costs_linear_time():
    start = time.perf_counter()
    assert parse_verdict("</think>" + "\\boxed{" * 100_000) is None
    assert parse_verdict("</think>" + ONE + "\\boxed{" * 100_000) == 1
    assert time.perf_counter() - start < 2


def completion(tokenizer: Tokenizer, *parts: str | list[int], stopped: bool = True) -> Completion:
    ids = [token for part in parts for token in (tokenizer.encode_control(part) if isinstance(part, str) else part)]
    request = Request("r", (1,), Decoding(stop_ids=tokenizer.stop_ids))
    ids += [tokenizer.eos_id] * stopped
    return Completion(request, tuple(ids), (0.0,) * len(ids), "stop" if stopped else "length")


def test_only_the_control_token_ends_thinking(r1: Tokenizer):
    """Thinking that spells `</think>` in ordinary tokens, as when it quotes a response, is still thinking."""
    spelt = r1.encode_text(f"it says </think>{TWO}")
    assert verdict_of_completion(completion(r1, spelt), r1) is None
    assert verdict_of_completion(completion(r1, spelt, f"</think>{ONE}"), r1) == 1
    assert verdict_of_completion(completion(r1, f"hm</think>{ONE}", r1.encode_text(" </think>")), r1) == 1
    assert verdict_of_completion(completion(r1, f"</think>{TWO}</think>{ONE}"), r1) == 1
    assert verdict_of_completion(completion(r1, f"</think>{ONE}", stopped=False), r1) == 1
    assert verdict_of_completion(completion(r1, "hm", stopped=False), r1) is None


def test_direct_completions(r1: Tokenizer):
    assert verdict_of_completion(completion(r1, TWO), r1, thinking=False) == 2
    assert verdict_of_completion(completion(r1, f"{TWO}</think>{ONE}"), r1, thinking=False) == 1
    assert verdict_of_completion(completion(r1, []), r1, thinking=False) is None


def test_a_tokenizer_without_the_control_token_is_read_as_text(real_data):
    qwen2 = Tokenizer.load(real_data / "tokenizers" / "qwen2")
    assert verdict_of_completion(completion(qwen2, f"hm</think>{ONE}"), qwen2) == 1
    assert verdict_of_completion(completion(qwen2, ONE), qwen2) is None


def test_only_a_stop_token_that_ended_it_is_no_part_of_a_text(letters):
    """Not the last token of what was cut off, nor of what another stop than a token ended."""
    ids = tuple(letters.encode_text("abc"))
    ended = (*ids, letters.eos_id)

    def written(ids, reason) -> tuple[int, ...]:
        return tuple(written_ids(Completion(Request("x", (1,), Decoding()), ids, (0.0,) * len(ids), reason), letters))

    assert written(ids, "length") == written(ids, "stop") == written(ended, "stop") == ids
    assert written(ended, "length") == ended
    assert written((), "stop") == ()
