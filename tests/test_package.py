"""What an installed package owes: one version, types, a light import, a module that runs."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest
import yaml

import rrm_jax

ROOT = Path(__file__).parent.parent
HEAVY = {"jax", "flax", "optax", "orbax", "transformers", "numpy", "pydantic", "fastapi", "grain"}


def test_one_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == rrm_jax.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest is not None
    assert newest[1] == rrm_jax.__version__


def test_it_says_that_it_is_typed():
    assert resources.files("rrm_jax").joinpath("py.typed").is_file()


@pytest.mark.parametrize("what", ["import rrm_jax", "import rrm_jax.cli.main"])
def test_nothing_heavy_is_imported_before_it_is_needed(what):
    done = subprocess.run([sys.executable, "-c", f"{what}, sys; print(*sys.modules)"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "rrm_jax", "rank", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--strategy" in done.stdout


def test_it_says_its_version():
    done = subprocess.run([Path(sys.executable).with_name("rrm"), "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    jax, python = re.escape(metadata.version("jax")), re.escape(platform.python_version())
    assert re.fullmatch(
        rf"rrm_jax {re.escape(rrm_jax.__version__)}( at [0-9a-f]{{40}}(-dirty)?)?, jax {jax}, Python {python}\n",
        done.stdout,
    )


def test_the_list_of_verbs_begins_with_the_one_to_begin_with_and_no_line_is_cut():
    done = subprocess.run(
        [sys.executable, "-m", "rrm_jax", "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    lines = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert lines[0].split()[:3] == ["quickstart", "Begin", "here:"]
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []


def test_shells_complete_it(monkeypatch):
    words = {"_RRM_COMPLETE": "complete_bash", "COMP_WORDS": "rrm da", "COMP_CWORD": "1"}
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([Path(sys.executable).with_name("rrm")], capture_output=True, text=True)
    assert done.stdout.split() == ["data"]
