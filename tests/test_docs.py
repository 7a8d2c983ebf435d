"""Every command of README.md and docs/: its verb, options and files are there, and what is marked to be run, runs.

Before a ```bash block stands `<!-- run -->`; or `<!-- run: TEST -->` where another test does so, and
`<!-- needs: WHAT -->` where this machine does not have what it takes.
"""

import ast
import functools
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import typer
from safetensors.numpy import save_file

import rrm_jax
from rrm_jax.cli.main import _app, app
from rrm_jax.config import find_config, load_config
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import END_THINK, EOS, write_word_tokenizer
from rrm_jax.judging.template import load_template
from rrm_jax.models.config import DecoderConfig, to_hf
from rrm_jax.models.params import named_specs
from rrm_jax.reproduce.config import load as load_reproduce
from rrm_jax.studies.run import study_config
from rrm_jax.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND: Any = typer.main.get_command(_app)

BLOCK = re.compile(
    r"(?:^[ \t]*<!-- *(?P<mark>run|run: *\S+|needs:[^>]+?) *-->\n)?"
    r"^[ \t]*```(?P<kind>\w+)(?P<title>[^\n]*)\n(?P<text>.*?)^[ \t]*```",
    re.M | re.S,
)
# Programs that are not ours, whose options we do not know.
OTHERS = {
    ".", "cat", "curl", "docker", "echo", "gcloud", "git", "hf", "kubectl", "pip", "scancel", "tail", "true", "uv",
}  # fmt: skip


class Block(NamedTuple):
    page: Path
    line: int
    mark: str | None
    kind: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    text = page.read_text(encoding="utf-8") if text is None else text
    return [
        Block(page, 1 + text.count("\n", 0, at.start("text")), *at.group("mark", "kind", "title", "text"))
        for at in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
BASH = [block for block in BLOCKS if block.kind == "bash"]
# Of a module, not a part of one (`title="FILE, in PLACE"`).
PYTHON = [block for block in BLOCKS if block.kind == "python" and ", in " not in block.title]


def commands_of(script: str) -> list[list[str]]:
    """The words of each simple command: without comments, redirections and assignments, variables put in."""
    values: dict[str, str] = {}
    commands: list[list[str]] = []
    for line in textwrap.dedent(script).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        current: list[str] = []
        for at, word in enumerate([*words, ";"]):
            following = words[at + 1] if at + 1 < len(words) else ""
            if set(word) <= set(";|&"):
                if current:
                    commands.append(current)
                current = []
            elif redirects(word) or (at and redirects(words[at - 1])) or (word.isdigit() and redirects(following)):
                continue
            elif not current and (given := re.fullmatch(r"([A-Za-z_]+)=(.*)", word, re.S)):
                values[given[1]] = given[2]
            elif word.startswith("$") and word[1:] in values:
                # As the pages have them: a quoted one is a value, another one words.
                current += [values[word[1:]]] if f'"{word}"' in line else shlex.split(values[word[1:]])
            else:
                current.append(word)
    return commands


def redirects(word: str) -> bool:
    return set(word) <= set("<>&") and word[:1] in ("<", ">")


class WrongCommand(AssertionError):
    pass


def check(words: list[str], configs: Path) -> None:
    """Raises WrongCommand. `configs` has files of configuration that the page itself shows."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "nohup":
        check(rest, configs)
    elif program == "rrm":
        check_rrm(rest, configs)
    elif program in ("python", "python3") and rest[0].startswith("launch/local.py"):
        known = ("--extra", "--processes", "--devices-per-process", "--restarts")
        while rest[1] in known:
            rest = [rest[0], *rest[3:]]
        check(rest[1:], configs)
    elif program in ("python", "python3"):
        check_script(rest)
    elif program == ".ci/run":
        assert (ROOT / program).is_file()
    elif program == "sbatch" or program.startswith("launch/"):
        check_launcher(words, configs)
    elif program in ("pytest", "mkdocs", "ruff", "pyrefly", "coverage"):
        for word in rest:
            if "/" in word and not (ROOT / word.partition("::")[0]).exists():
                raise WrongCommand(f"{word} does not exist")
    elif program not in OTHERS:
        raise WrongCommand(f"{program!r} is no program that we know")


def check_rrm(words: list[str], configs: Path) -> None:
    """Parsed by the command itself, as if it were to be run; then its files of configuration are read."""
    # What a page leaves out: "…" is a value after an option, and nothing elsewhere.
    words = [word for at, word in enumerate(words) if word != "…" or (at and words[at - 1].startswith("--"))]
    command, name = COMMAND, "rrm"
    while words and words[0] in getattr(command, "commands", {}):
        command, name = command.commands[words[0]], f"{name} {words[0]}"
        words = words[1:]
    if hasattr(command, "commands") and words[:1] != ["--help"]:
        raise WrongCommand(f"{name} has no verb {words[:1]}")
    if "--help" in words:
        return
    try:
        given = command.make_context(name, list(words)).params
    except Exception as error:  # click's own, which typer may bring with it
        told = error.format_message() if hasattr(error, "format_message") else error
        raise WrongCommand(f"{name}: {told}") from None
    overrides = list(given.get("overrides") or [])
    if name in ("rrm train", "rrm plan"):
        load_config(TrainConfig, find(given["config"], configs), overrides)
    elif name == "rrm study":
        study_config(given["name"], given["config"], overrides)
    elif name == "rrm reproduce":
        load_reproduce(given["scale"], overrides)
    elif name == "rrm data show" and given["config"]:
        find(given["config"], configs)


def find(name: str | Path, configs: Path) -> Path:
    shown = configs / name
    return shown if shown.is_file() else find_config(str(name))


def check_script(words: list[str]) -> None:
    """A benchmark, or a script of the tests: the file is there, and its options are among those that it declares."""
    target, *rest = words[1:] if words[0] == "-m" else words
    path = ROOT / (target.replace(".", "/") + ".py" if words[0] == "-m" else target)
    if target == "rrm_jax":
        return check_rrm(rest, ROOT)
    if not path.is_file():
        raise WrongCommand(f"{path.relative_to(ROOT)} does not exist")
    declared = declared_options(path)
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in declared:
            raise WrongCommand(f"{path.name} has no option {word}; it has {', '.join(sorted(declared))}")


@functools.cache
def declared_options(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    found = set()
    for call in ast.walk(ast.parse(text)):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
            found |= {node.value for node in call.args if isinstance(node, ast.Constant)}
    return found | {option for option in re.findall(r"--[a-z]+-python", text)}


def check_launcher(words: list[str], configs: Path) -> None:
    """The script is there and reads the options before the command that it is to start, which is checked like any."""
    scripts = [word for word in words if word.startswith("launch/")]
    if not scripts or not (ROOT / scripts[0]).is_file():
        raise WrongCommand(f"{' '.join(words[:3])} …: no such script")
    if scripts[0] == "launch/slurm.sbatch":
        before, after = words[: words.index(scripts[0])], words[words.index(scripts[0]) + 1 :]
    else:
        starts = [at for at, word in enumerate(words) if word == "rrm" and not words[at - 1].startswith("--")]
        at = words.index("--") + 1 if "--" in words else min(starts, default=len(words))
        before, after = words[1:at], words[at:]
        text = (ROOT / scripts[0]).read_text(encoding="utf-8")
        for option in before:
            if option.startswith("--") and option != "--" and f"{option})" not in text:
                raise WrongCommand(f"{scripts[0]} has no option {option}")
        verbs = re.search(r"^  ([a-z |]+)\) shift", text, re.M)
        if verbs and before[0] not in verbs[1].split(" | "):
            raise WrongCommand(f"{scripts[0]} has no verb {before[0]}")
    if after:
        check(after, configs)


@pytest.fixture(scope="module")
def shown_configs(tmp_path_factory) -> dict[Path, Path]:
    """Of each page the folder of the YAML files that it shows, beside those that come with the package."""
    folders = {}
    for page in PAGES:
        folders[page] = tmp_path_factory.mktemp("configs")
        for block in blocks_of(page):
            if block.kind == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", block.text)):
                for shipped in (ROOT / "configs").glob("*.yaml"):
                    shutil.copy(shipped, folders[page])
                (folders[page] / name[1]).write_text(block.text, encoding="utf-8")
    return folders


@pytest.mark.parametrize("block", BASH, ids=str)
def test_every_block_is_marked_and_its_commands_exist(block: Block, shown_configs):
    assert block.mark, "write <!-- run --> or <!-- needs: WHAT --> before it"
    if block.mark.startswith("run:"):
        assert (ROOT / block.mark.removeprefix("run:").strip()).is_file()
        return  # with files, and verbs' names, that are made there
    for words in commands_of(block.text):
        check(words, shown_configs[block.page])


# In running text a command is often named without all that it takes: its verb and its options must be there.
INLINE = [
    (page, " ".join(found[1].split()))
    for page in PAGES
    for found in re.finditer(r"(?<!`)`((?:rrm|python -m|python|python3) [^`]+)`(?!`)", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "text"), INLINE, ids=lambda value: value if isinstance(value, str) else value.stem)
def test_commands_in_running_text_exist(page: Path, text: str):
    for words in commands_of(text):
        if words[0] != "rrm":
            check(words, ROOT)
            continue
        command = COMMAND
        for word in words[1:]:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
            elif hasattr(command, "commands"):
                assert word in ("--help", "…") or word.isupper(), f"no verb {word}"
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words[2:] if word.startswith("--")} <= options | {"--help"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("rrm judge --model m --pairs p --out o --vote 4", "--vote"),
        ("rrm judge --model m --pairs p --out o --order sideways", "sideways"),
        ("rrm judge --pairs p --out o", "--model"),
        ("rrm judg --pairs p", "no verb"),
        ("rrm data", "no verb"),
        ("rrm train rrm_9b.yaml", "rrm_9b.yaml"),
        ("rrm train rrm_7b.yaml grpo.varaint=dapo", "grpo.variant"),
        ("rrm study reasonning tiny", "reasonning"),
        ("rrm rank --model m --candidates c --out o --budget none", "budget"),
        ("python -m benchmarks.kills --eaches 5", "--eaches"),
        ("python benchmarks/nothing.py", "does not exist"),
        ("launch/tpu_vm.sh create --nom rrm", "--nom"),
        ("launch/tpu_vm.sh make --name rrm", "no verb make"),
        ("python3 launch/local.py --extra tpu rrm judges", "no verb"),
        ("rmm judge", "no program"),
    ],
)
def test_a_wrong_command_is_found(wrong: str, told: str):
    with pytest.raises(Exception, match=re.escape(told)):
        [check(words, ROOT) for words in commands_of(wrong)]


def test_an_unmarked_block_is_found():
    marked, unmarked = "<!-- needs: GPU -->\n```bash\nrrm\n```\n", "text\n\n```bash\nrrm\n```\n"
    assert [block.mark for block in blocks_of(ROOT / "README.md", marked + unmarked)] == ["needs: GPU", None]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """What commands that are run find: pairs.jsonl, candidates.jsonl, questions.jsonl, and a judge, which also stands
    where the quickstart leaves its own."""
    home = tmp_path_factory.mktemp("world")
    for name in ("judge", "quickstart/grpo"):
        write_judge(home / "runs" / name)
    sums = [(a, b) for a in range(1, 4) for b in range(2, 4)]
    pairs = [
        {"id": f"{a}+{b}", "query": f"{a} + {b}?", "response_1": f"\\boxed{{{a + b}}}", "response_2": "1", "label": 1}
        for a, b in sums
    ]
    candidates = [
        {
            "id": f"{a}+{b}",
            "query": f"{a} + {b}?",
            "responses": [f"\\boxed{{{a + b + off}}}" for off in range(-1, 3)],
            "correct": [off == 0 for off in range(-1, 3)],
        }
        for a, b in sums[:2]
    ]
    questions = [{"id": f"{a}+{b}", "query": f"{a} + {b}?", "answer": str(a + b)} for a, b in sums]
    for name, rows in {"pairs": pairs, "candidates": candidates, "questions": questions}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (home / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return home


def write_judge(directory: Path) -> None:
    """A Qwen2 whose next token depends on the last one alone: it thinks nothing, and names either response as often.

    A prompt is a token for each of the template's lines, so that it is short.
    """
    template, verdicts = load_template("default"), [f"\\boxed{{Assistant {at}}}" for at in (1, 2)]
    lines = (template.system + template.user).splitlines()
    size = write_word_tokenizer(directory, [*filter(None, lines), *"0123456789 +?\n", "\\boxed{", "}", *verdicts])
    config = DecoderConfig(size, 64, 1, 4, 2, 16, 64, max_positions=16_384)
    (directory / "config.json").write_text(json.dumps(to_hf(config)), encoding="utf-8")
    ones = ("norm",)
    tensors = {spec.hf: np.full(spec.hf_shape, float(spec.axes == ones), np.float32) for _, spec in named_specs(config)}
    token = Tokenizer.load(directory).encode_control
    [newline], [end], [stop] = token("\n"), token(END_THINK), token(EOS)
    tensors["model.embed_tokens.weight"][np.arange(size), np.arange(size)] = 1.0
    for last, following in [(newline, [end]), (end, [token(verdict)[0] for verdict in verdicts])]:
        tensors["lm_head.weight"][following, last] = 2.0  # × 8 by the last norm: no other token comes
    tensors["lm_head.weight"][stop, [token(verdict)[0] for verdict in verdicts]] = 2.0
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def one_device(monkeypatch):
    """What is run is small: on eight devices most of its time would go into compiling for eight."""
    alone = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *backend: alone)
    monkeypatch.setenv("RRM_COMPILATION_CACHE", "off")


RUN = {page: [block for block in BASH if block.page == page and block.mark == "run"] for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda page: page.stem)
def test_what_is_marked_to_be_run_runs(page: Path, world, tmp_path, monkeypatch, one_device, quick_compiles):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for words in [words for block in RUN[page] for words in commands_of(block.text)]:
        run(words, monkeypatch)
        for flag in ("--out", "--picture"):
            if flag in words:
                assert written(tmp_path / words[words.index(flag) + 1]), f"nothing was written by {shlex.join(words)}"


def written(made: Path) -> bool:
    """A file with something in it, or a folder of such, or, where OUT is only a beginning, OUT.json and others."""
    files = [made, *made.parent.glob(f"{made.name}.*"), *(made.iterdir() if made.is_dir() else ())]
    return any(file.is_file() and file.stat().st_size for file in files)


def run(words: list[str], monkeypatch) -> None:
    if words[0] != "rrm":
        subprocess.run(words, check=True, timeout=60)
        return
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit:
        app()
    assert not exit.value.code, shlex.join(words)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_reads_and_what_it_imports_is_there(block: Block):
    for node in ast.walk(ast.parse(textwrap.dedent(block.text).replace("…", "..."))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rrm_jax":
            assert hasattr(rrm_jax, node.attr), f"rrm_jax has no {node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rrm_jax"):
            module = importlib.import_module(node.module or "")
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("block", [block for block in PYTHON if block.mark == "run"], ids=str)
def test_python_that_is_marked_to_be_run_runs(block: Block, world, monkeypatch, one_device, quick_compiles, capsys):
    monkeypatch.chdir(world)
    exec(compile(textwrap.dedent(block.text), str(block), "exec"), {})
