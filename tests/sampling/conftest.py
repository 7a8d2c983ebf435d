"""A server that answers as asked, and a tokenizer for it."""

import string

import pytest

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from tests.sampling.stub_server import KEY, stub_servers


@pytest.fixture
def environment(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> Tokenizer:
    """One token a character, with the control tokens of R1."""
    directory = tmp_path_factory.mktemp("letters")
    write_word_tokenizer(directory, string.printable)
    return Tokenizer.load(directory)


serve = pytest.fixture(stub_servers, name="serve")
