"""docs/contributing.md, done: each of its changes in a copy of the package, then its command."""

import json
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.quickstart import world
from rrm_jax.testing import tiny_config, write_hf_checkpoint

ROOT = Path(__file__).parent.parent
SECTION = re.compile(
    r'^## (?P<title>.+)\n(?:(?!^## ).*\n)*?```python title="(?P<file>[^",]+)"\n(?P<code>(?:.*\n)*?)```\n'
    r'(?:(?!^## ).*\n)*?```python title="(?P<registry>[^",]+), in (?P<name>\w+)"\n(?P<line>.*)\n```\n'
    r"(?:(?!^## ).*\n)*?```bash\n(?P<command>(?:.*\n)*?)```",
    re.M,
)
SECTIONS = {found["title"]: found for found in SECTION.finditer((ROOT / "docs/contributing.md").read_text("utf-8"))}
OWN = {"JAX_PLATFORMS": "cpu", "RRM_COMPILATION_CACHE": "off", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SHOWS = {
    "A pairing strategy": ("runs/throne/replay.md", "throne"),
    "A benchmark": ("runs/poems.md", "sonnet"),
    "A data set": ("data/riddles.run.json", "riddles"),
    "A loss option": ("runs/unclipped/config.yaml", "surrogate: unclipped"),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """The files that the commands name."""
    directory = tmp_path_factory.mktemp("contributing")
    vocabulary = write_word_tokenizer(directory / "model", list(dict.fromkeys([*world.WORDS, *string.printable])))
    write_hf_checkpoint(directory / "model", tiny_config(vocab_size=vocabulary, max_positions=4096))
    (directory / "template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    rows = {
        "pairs": list(world.pairs(8, 0)),
        "poems": [
            {"subject": "rain", "form": form, "a": f"drip {at}", "b": f"drop {at}", "better": "ab"[at % 2]}
            for at, form in enumerate(["sonnet", "haiku", "sonnet"])
        ],
        "riddles": [{"riddle": f"what is {at} + 1?", "solution": str(at + 1)} for at in range(3)],
    }
    for name, of in rows.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of), encoding="utf-8")
    return directory


@pytest.mark.thorough
@pytest.mark.parametrize("title", SHOWS)
def test_one_file_and_one_line_are_enough(given, tmp_path, title):
    assert SECTIONS.keys() == SHOWS.keys()
    section = SECTIONS[title]
    shutil.copytree(ROOT / "rrm_jax", tmp_path / "rrm_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / section["file"]).write_text(section["code"], encoding="utf-8")
    registry = tmp_path / section["registry"]
    opening = re.compile(rf"^{section['name']}\b.* = [\[({{]\n", re.M)
    text, count = opening.subn(lambda found: found[0] + section["line"] + "\n", registry.read_text("utf-8"))
    assert count == 1
    registry.write_text(text, encoding="utf-8")
    words = section["command"].replace("\\\n", "").split()
    assert words[0] == "rrm"
    command = [sys.executable, "-m", "rrm_jax", *words[1:]]
    done = subprocess.run(
        command, cwd=given, env=os.environ | OWN | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    path, shown = SHOWS[title]
    assert shown in (given / path).read_text(encoding="utf-8")
