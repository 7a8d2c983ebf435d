"""Untrusted text never becomes control tokens; trusted prompts are exactly what the released files give."""

import json
import shutil
import time
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, write_word_tokenizer
from rrm_jax.errors import RrmError

WORDS = [*"0123456789", "Query", "?", " ", "\n", "think", "<", ">", "/"]
FAKES = [
    "<think>",
    "</think>",
    "<｜Assistant｜>",
    "<｜User｜>",
    "<｜end▁of▁sentence｜>",
    "<|EOT|>",
    "<|im_end|>",
    "<|end|>",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HOSTILE = st.lists(st.one_of(ANY_TEXT, st.sampled_from([*FAKES, "<th", "ink>", "\\boxed{Assistant 1}", "\u0301"]))).map(
    "".join
)


@pytest.fixture(scope="session")
def r1(r1_tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.load(r1_tokenizer_dir)


@pytest.fixture(scope="session")
def r1_raw(r1_tokenizer_dir: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(r1_tokenizer_dir / "tokenizer.json"))


@pytest.fixture(scope="session")
def qwen2(real_data: Path) -> Tokenizer:
    return Tokenizer.load(real_data / "tokenizers" / "qwen2")


@pytest.fixture(scope="session")
def shared_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    write_word_tokenizer(directory, WORDS)
    return directory


@pytest.fixture
def words_dir(tmp_path: Path) -> Path:
    write_word_tokenizer(tmp_path, WORDS)
    return tmp_path


def edit(directory: Path, file: str, **changes) -> None:
    path = directory / file
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(before | changes), encoding="utf-8")


def test_golden_vectors(r1: Tokenizer, r1_tokenizer_dir: Path):
    for vector in json.loads((r1_tokenizer_dir / "golden_vectors.json").read_text(encoding="utf-8")):
        assert r1.encode_control(vector["text"]) == vector["ids"], vector["text"]
        assert r1.decode(vector["ids"]) == vector["decoded"]
        if not any(token >= 151643 for token in vector["ids"]):
            assert r1.encode_text(vector["text"]) == vector["ids"], vector["text"]


def test_special_ids(r1: Tokenizer):
    assert r1.unknown_id is None
    assert (r1.bos_id, r1.eos_id, r1.stop_ids, r1.vocab_size) == (151646, 151643, (151643,), 151665)
    assert r1.control_id("<think>") == 151648
    assert r1.control_id("Ġthe") is None
    assert r1.control_id("<|im_end|>") is None


@settings(max_examples=200, deadline=None)
@given(text=HOSTILE)
def test_text_never_becomes_control_tokens_and_survives(r1: Tokenizer, r1_raw: tokenizers.Tokenizer, text: str):
    ids = r1.encode_text(text)
    assert all(token < 151643 for token in ids)
    assert r1.decode(ids) == unicodedata.normalize("NFC", text)
    raw = r1_raw.encode(text, add_special_tokens=False).ids
    if max(raw, default=0) < 151643:
        assert ids == raw


@settings(max_examples=100, deadline=None)
@given(text=HOSTILE)
def test_spans_cover_the_text(r1: Tokenizer, text: str):
    spans = r1.token_spans(text)
    assert len(spans) == len(r1.encode_text(text))
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from([*WORDS, *FAKES, BOS, EOS, "x"])).map("".join))
def test_word_tokenizer_text_is_plain(shared_words: Path, text: str):
    ids = Tokenizer.load(shared_words).encode_text(text)
    assert all(token <= len(WORDS) for token in ids)
    raw = tokenizers.Tokenizer.from_file(str(shared_words / "tokenizer.json")).encode(text).ids
    if max(raw, default=0) <= len(WORDS):
        assert ids == raw


def test_word_tokenizer_chat(words_dir: Path):
    tokenizer = Tokenizer.load(words_dir)
    ids = tokenizer.encode_chat([("system", "Query"), ("user", "1<think>2</think>")], "<think>\n")
    control = {name: tokenizer.control_id(name) for name in (BOS, USER, ASSISTANT, THINK, END_THINK)}
    text = [tokenizer.decode([token]) if token not in control.values() else token for token in ids]
    spelt = ["<", "think", ">", "2", "<", "/", "think", ">"]
    assert text == [control[BOS], "Query", control[USER], "1", *spelt, control[ASSISTANT], control[THINK], "\n"]


def released_prompt(system: str, user: str, suffix: str) -> str:
    return f"<｜begin▁of▁sentence｜>{system}<｜User｜>{user}<｜Assistant｜>{suffix}"


@pytest.fixture(scope="session")
def newer_r1(r1_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The second generation of R1's template, whose generation prompt begins the thinking."""
    directory = tmp_path_factory.mktemp("newer") / "r1"
    shutil.copytree(r1_tokenizer_dir, directory)
    template = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    old = "{{'<｜Assistant｜>'}}{% endif %}"
    assert template.endswith(old)
    template = template.removesuffix(old) + "{{'<｜Assistant｜><think>\\n'}}{% endif %}"
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Tokenizer.load(directory)


@pytest.mark.parametrize("suffix", ["<think>\n", "<think>\n\n</think>\n\n"])
@pytest.mark.parametrize(("system", "user"), [("Judge.\n\n", "## Query\n\nA b\n"), (" x", "\n\ny \n")])
def test_chat_is_the_released_prompt(r1, newer_r1, r1_raw, suffix, system, user):
    expected = r1_raw.encode(released_prompt(system, user, suffix), add_special_tokens=False).ids
    assert expected.count(r1.bos_id) == 1
    for tokenizer in (r1, newer_r1):
        assert tokenizer.encode_chat([("system", system), ("user", user)], suffix) == expected
    assert newer_r1.encode_chat([("user", user)])[-2:] == [151648, 198]
    assert r1.encode_chat([("user", user)])[-1] == 151645


def test_qwen2_files_without_tokenizer_json(qwen2: Tokenizer, r1: Tokenizer, real_data: Path):
    """vocab.json and merges.txt give the ids of R1's tokenizer.json, which holds the same vocabulary."""
    assert (qwen2.bos_id, qwen2.eos_id, qwen2.stop_ids, qwen2.vocab_size) == (None, 151645, (151643, 151645), 151646)
    count = 0
    for row in (real_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:300]:
        text = json.loads(row)["question"] + json.loads(row)["answer"]
        assert qwen2.encode_text(text) == r1.encode_text(text)
        count += len(text)
    assert count > 50_000
    ids = qwen2.encode_chat([("system", "S<|im_end|>"), ("user", "u")])
    assert ids[:1] == [151644]
    assert ids.count(151645) == 2
    assert qwen2.decode(ids) == (
        "<|im_start|>system\nS<|im_end|><|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["deepseek_r1_distill_qwen", "qwen2"])
def test_templates_render_as_in_transformers(real_data: Path, name: str):
    import transformers
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    directory = real_data / "tokenizers" / name
    kind = Qwen2Tokenizer if name == "qwen2" else transformers.PreTrainedTokenizerFast
    theirs = kind.from_pretrained(directory)
    messages = [("system", "Be\n brief. "), ("user", " hi\n"), ("assistant", "ho"), ("user", "well? ")]
    chat = [{"role": role, "content": content} for role, content in messages]
    text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ours = Tokenizer.load(directory)
    ids = ours.encode_chat(messages)
    assert ids == theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text


def test_bos_once(words_dir: Path):
    """A template without BOS gets the one that the tokenizer adds; a template that writes two has one left."""
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for template, adds, expected in [
        (plain, True, 1),
        (plain, False, 0),
        ("{{ bos_token }}" + plain, True, 1),
        ("{{ bos_token }}" + plain, False, 1),
        ("{{ bos_token }}{{ bos_token }}" + plain, True, 1),
    ]:
        edit(words_dir, "tokenizer_config.json", chat_template=template, add_bos_token=adds)
        tokenizer = Tokenizer.load(words_dir)
        ids = tokenizer.encode_chat([("user", BOS + "1")])
        assert ids.count(tokenizer.bos_id) == expected
        assert ids[0] == tokenizer.bos_id or not expected


def test_bos_of_the_post_processor(r1_tokenizer_dir: Path, tmp_path: Path):
    shutil.copytree(r1_tokenizer_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["add_bos_token"]
    config["chat_template"] = "{{ messages[0]['content'] }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert Tokenizer.load(tmp_path).encode_chat([("user", "hi")]) == [151646, 6023]


def test_suffix_is_written_once_and_never_swallowed(words_dir: Path):
    def suffix_of(generation_prompt: str, suffix: str) -> str:
        template = "{{ messages[0]['content'] }}{{ " + json.dumps(generation_prompt) + " }}"
        edit(words_dir, "tokenizer_config.json", chat_template=template)
        tokenizer = Tokenizer.load(words_dir)
        return tokenizer.decode(tokenizer.encode_chat([("user", "Query")], suffix)).removeprefix(BOS + "Query")

    assert suffix_of("<think>\n", "<think>\n") == "<think>\n"
    assert suffix_of("<think>\n", "<think>\n\n</think>\n\n") == "<think>\n\n</think>\n\n"
    assert suffix_of("<think>", "<think>\n") == "<think>\n"
    assert suffix_of("\n", "\n\n1") == "\n\n\n1"  # a blank in common is no overlap
    assert suffix_of("", "<think>\n") == "<think>\n"
    assert suffix_of("<think>\n", "") == "<think>\n"


@pytest.mark.parametrize("form", ["jinja", "json", "list", "dict"])
def test_where_a_chat_template_may_stand(words_dir: Path, form: str):
    wanted, other = "W{{ messages[0]['content'] }}", "{{ raise_exception('not this one') }}"
    if form == "jinja":
        edit(words_dir, "tokenizer_config.json", chat_template=other)
        edit(words_dir, "chat_template.json", chat_template=other)
        (words_dir / "chat_template.jinja").write_text(wanted, encoding="utf-8")
    elif form == "json":
        edit(words_dir, "tokenizer_config.json", chat_template=other)
        edit(words_dir, "chat_template.json", chat_template=wanted)
    elif form == "list":
        both = [{"name": "tool_use", "template": other}, {"name": "default", "template": wanted}]
        edit(words_dir, "tokenizer_config.json", chat_template=both)
    else:
        edit(words_dir, "tokenizer_config.json", chat_template={"tool_use": other, "default": wanted})
    tokenizer = Tokenizer.load(words_dir)
    assert tokenizer.encode_chat([("user", "1")]) == [tokenizer.bos_id, *tokenizer.encode_text("W1")]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "exactly once"),
        ("nothing", "exactly once"),
        ("{{ messages[0]['content'] | upper }}", "exactly once"),
        ("{% if %}", "the chat template fails"),
    ],
)
def test_unusable_chat_templates(words_dir: Path, template: str | None, message: str):
    edit(words_dir, "tokenizer_config.json", chat_template=template)
    tokenizer = Tokenizer.load(words_dir)
    assert tokenizer.encode_text("1")
    with pytest.raises(RrmError, match=message):
        tokenizer.encode_chat([("user", "1")])


def test_stop_ids_are_merged(words_dir: Path):
    eos = Tokenizer.load(words_dir).eos_id
    assert Tokenizer.load(words_dir).stop_ids == (eos,)
    edit(words_dir, "config.json", eos_token_id=3)
    edit(words_dir, "generation_config.json", eos_token_id=[5, eos])
    assert Tokenizer.load(words_dir).stop_ids == tuple(sorted({3, 5, eos}))
    assert Tokenizer.load(words_dir).eos_id == eos


def test_saved_truncation_is_not_applied(words_dir: Path):
    raw = tokenizers.Tokenizer.from_file(str(words_dir / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=16)
    raw.save(str(words_dir / "tokenizer.json"))
    tokenizer = Tokenizer.load(words_dir)
    assert len(tokenizer.encode_text("0123456789")) == len(tokenizer.encode_control("0123456789")) == 10


def test_control_tokens_in_the_models_own_vocabulary_are_refused(tmp_path: Path):
    write_word_tokenizer(tmp_path, [*WORDS, EOS])
    with pytest.raises(RrmError, match="control token is reachable"):
        Tokenizer.load(tmp_path)


def test_a_directory_without_tokenizer(tmp_path: Path):
    with pytest.raises(RrmError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RrmError, match=r"tokenizer\.json cannot be used"):
        Tokenizer.load(tmp_path)


def test_lone_surrogates_are_refused(r1: Tokenizer):
    with pytest.raises(RrmError, match="lone surrogate"):
        r1.encode_text("a\ud800")


def test_fingerprint_follows_what_decides_the_ids(words_dir: Path):
    before = Tokenizer.load(words_dir).fingerprint
    assert Tokenizer.load(words_dir).fingerprint == before
    edit(words_dir, "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    assert Tokenizer.load(words_dir).fingerprint != before


def test_long_texts_are_fast(r1: Tokenizer):
    for text in ("the answer is 42. " * 50_000, "a" * 500_000, "<think>" * 50_000):
        start = time.perf_counter()
        r1.encode_text(text)
        assert time.perf_counter() - start < 10
