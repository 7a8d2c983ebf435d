"""Benchmarks that are programs in strings, which no type checker reads: they run through, at a size of seconds."""

import os
import string
import subprocess
import sys
from pathlib import Path

import pytest

from rrm_jax.data.word_tokenizer import write_word_tokenizer

ROOT = Path(__file__).parent.parent


@pytest.mark.thorough
def test_data(tmp_path):
    write_word_tokenizer(tmp_path / "tokenizer", string.printable)
    sizes = ["--pairs", "420", "--prompts", "20", "--cached-pairs", "42"]
    command = ["benchmarks/data.py", "--dir", tmp_path / "work", "--tokenizer", tmp_path / "tokenizer", *sizes]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said.count("prepare") == 1
    assert said.count("feed,") == 4, done.stdout
    assert not (tmp_path / "work").exists()
