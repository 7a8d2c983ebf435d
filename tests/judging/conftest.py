import string
from pathlib import Path

import pytest

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.judging.template import Template


@pytest.fixture(scope="session")
def r1(r1_tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.load(r1_tokenizer_dir)


@pytest.fixture(scope="session")
def letters_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a character, with the control tokens of R1."""
    directory = tmp_path_factory.mktemp("letters")
    write_word_tokenizer(directory, string.printable)
    return directory


@pytest.fixture(scope="session")
def letters(letters_dir: Path) -> Tokenizer:
    return Tokenizer.load(letters_dir)


@pytest.fixture(scope="session")
def short() -> Template:
    """27 + 39 characters of its own."""
    user = "{query}\n### Assistant 1\n{response_1}\n### Assistant 2\n{response_2}\n## Analysis"
    return Template("short", "Which is better?", user)
