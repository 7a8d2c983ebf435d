"""Where compiled programs are kept: by default in the user's cache, else where the user says, or nowhere."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rrm_jax.cli.compilation_cache import keep_compilations
from rrm_jax.cli.main import _app

DIRECTORY, SHORTEST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def test_on_by_default_in_a_directory_of_this_kind_of_machine(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_compilations(environment)
    assert environment[DIRECTORY].startswith(f"{tmp_path}/rrm_jax/xla-")
    assert environment[SHORTEST] == "0.5"
    again = {"XDG_CACHE_HOME": str(tmp_path), SHORTEST: "2"}
    keep_compilations(again)
    assert again == {**environment, SHORTEST: "2"}


@pytest.mark.parametrize("given", [{"RRM_COMPILATION_CACHE": "off"}, {DIRECTORY: "/elsewhere"}, {DIRECTORY: ""}])
def test_the_user_decides(tmp_path, given):
    environment = {"XDG_CACHE_HOME": str(tmp_path), **given}
    keep_compilations(environment)
    assert environment == {"XDG_CACHE_HOME": str(tmp_path), **given}


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    keep_compilations(environment)
    assert DIRECTORY not in environment


def test_every_verb_sets_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("RRM_COMPILATION_CACHE", "")
    for name in (DIRECTORY, SHORTEST):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    assert CliRunner().invoke(_app, ["template", "default"]).exit_code == 0
    assert os.environ[DIRECTORY].startswith(str(tmp_path))
    assert "RRM_COMPILATION_CACHE=off" in CliRunner().invoke(_app, ["--help"]).stdout


SCRIPT = """
from rrm_jax.cli.compilation_cache import keep_compilations
keep_compilations()
import jax, jax.monitoring
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
print(jax.jit(lambda x: (x * 2).sum())(jax.numpy.arange(3.0)))
print("hits", sum(event.endswith("cache_hits") for event in events))
"""


def test_a_second_run_compiles_nothing(tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in (DIRECTORY, "RRM_COMPILATION_CACHE")}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", SHORTEST: "0"}

    def run() -> tuple[list[str], set[str]]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), {path.name for path in tmp_path.rglob("*-cache")}

    (first, written), (second, after) = run(), run()
    assert first[0] == second[0] == "6.0"
    assert first[1:] == ["hits", "0"]
    assert written
    assert after == written
    assert int(second[2]) == len(written)
