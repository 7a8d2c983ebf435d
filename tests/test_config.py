"""Configuration from YAML files and overrides: what is merged, what is refused and how it is said."""

import pytest
from pydantic import Field, ValidationError

from rrm_jax.config import Config, find_config, load_config
from rrm_jax.errors import RrmError
from rrm_jax.training.config import TrainConfig


class Optimizer(Config):
    learning_rate: float = 1e-6
    warmup_steps: int = Field(10, ge=0)


class Sampling(Config):
    temperature: float = 0.6


class Run(Config):
    model: str
    steps: int = 100
    stop_words: tuple[str, ...] = ()
    optimizer: Optimizer = Optimizer()
    sampling: Sampling | None = None
    others: dict[str, Sampling] = Field(default_factory=dict)


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_then_file_then_overrides(write):
    path = write("run.yaml", "model: m\nsteps: 5\noptimizer: {warmup_steps: 3}\n")
    config = load_config(Run, path, ["steps=7", "optimizer.learning_rate=2e-5", "stop_words=[a, b]"])
    assert config == Run(
        model="m", steps=7, stop_words=("a", "b"), optimizer=Optimizer(learning_rate=2e-5, warmup_steps=3)
    )
    assert load_config(Run, None, ["model=x"]) == Run(model="x")


def test_numbers_that_yaml_reads_as_text_are_numbers(write):
    path = write("run.yaml", "model: m\noptimizer:\n  learning_rate: 1e-6\n")
    assert load_config(Run, path).optimizer.learning_rate == 1e-6
    assert load_config(Run, path, ["optimizer.learning_rate=3e-7"]).optimizer.learning_rate == 3e-7


def test_extends_merges_section_by_section_and_is_relative_to_the_file(write):
    write("base/common.yaml", "model: base\nsteps: 1\noptimizer: {learning_rate: 0.5, warmup_steps: 2}\n")
    write("base/middle.yaml", "extends: common.yaml\nsteps: 2\noptimizer: {warmup_steps: 9}\n")
    path = write("run.yaml", "extends: base/middle.yaml\nmodel: top\n")
    assert load_config(Run, path) == Run(model="top", steps=2, optimizer=Optimizer(learning_rate=0.5, warmup_steps=9))


def test_a_later_override_of_a_section_and_of_its_key_both_count(write):
    overrides = ["model=m", "sampling={temperature: 1.0}", "optimizer.warmup_steps=4", "sampling.temperature=0.5"]
    config = load_config(Run, None, overrides)
    assert config.sampling == Sampling(temperature=0.5)
    assert config.optimizer.warmup_steps == 4
    assert load_config(Run, None, ["model=m", "sampling=null", "sampling.temperature=2"]).sampling.temperature == 2
    assert load_config(Run, None, ["model=a=b"]).model == "a=b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=m", "stepz=3"], r"stepz: unknown key; did you mean 'steps'\?"),
        (["model=m", "optimizer.learningrate=3"], r"optimizer.learningrate: .*did you mean 'optimizer.learning_rate'"),
        (["model=m", "learning_rate=3"], "learning_rate: .*did you mean 'optimizer.learning_rate'"),
        (["model=m", "sampling.temprature=1"], r"did you mean 'sampling.temperature'"),
        (["model=m", "others.mine.temprature=1"], r"did you mean 'others.mine.temperature'"),
        (["model=m", "optimizer.xyzzy=1"], "optimizer.xyzzy: .*known here: learning_rate, warmup_steps"),
        (["model=m", "steps=many"], r"steps: .*valid integer.*\(got 'many'\)"),
        (["model=m", "steps=1.5"], r"steps: .*integer"),
        (["model=m", "optimizer.warmup_steps=-1"], "optimizer.warmup_steps: .*greater than or equal to 0"),
        (["model=m", "optimizer=3"], r"optimizer: .*\(got 3\)"),
        (["steps=3"], "model: a value is required"),
        (["model=m", "optimiser.warmup_steps=3"], "optimiser: unknown key; did you mean 'optimizer'"),
        (["model=m", "1=3"], "1: unknown key"),
        (["steps"], "'steps' is not of the form key=value"),
        (["=3"], "'=3' is not of the form key=value"),
        (["model=[1"], "the value is not valid YAML"),
    ],
)
def test_wrong_keys_and_values_are_named(overrides, message):
    with pytest.raises(RrmError, match=message):
        load_config(Run, None, overrides)


def test_all_problems_are_reported_at_once_with_the_file(write):
    path = write("run.yaml", "stepz: 3\noptimizer: {learning_rate: fast}\n")
    with pytest.raises(RrmError) as caught:
        load_config(Run, path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a valid Run:\n")
    for part in ("model: a value is required", "stepz: unknown key", "optimizer.learning_rate: "):
        assert part in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is not valid YAML"),
        ("- model\n", "must hold a mapping at its top level, not list"),
        ("extends: missing.yaml\n", "extends .*missing.yaml, which does not exist"),
        ("extends: run.yaml\n", "extends itself"),
        ("extends: [a.yaml, b.yaml]\n", "extends must be the path of one file"),
        ("model: m\n1: 2\n", "1: "),
        ("model: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_files_that_cannot_be_used(write, text, message):
    with pytest.raises(RrmError, match=message):
        load_config(Run, write("run.yaml", text))


def test_a_circle_of_files_is_refused(write):
    write("a.yaml", "extends: b.yaml\n")
    with pytest.raises(RrmError, match="extends itself"):
        load_config(Run, write("b.yaml", "extends: a.yaml\n"))


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(RrmError, match=r"run.yaml is not valid YAML"):
        load_config(Run, tmp_path / "run.yaml")


def test_files_are_found_by_path_or_by_name_among_those_shipped(write):
    path = write("mine.yaml", "model: m\n")
    assert find_config(str(path)) == path
    shipped = find_config("rrm_7b.yaml")
    assert shipped.parent.name == "configs"
    with pytest.raises(RrmError, match=r"no config file 'nowhere\.yaml'"):
        find_config("nowhere.yaml")
    with pytest.raises(RrmError, match=r"did you mean grpo_tiny\.yaml\?"):
        find_config("grpo_tinny.yaml")
    with pytest.raises(RrmError, match=r"rrm_32b\.yaml, rrm_7b\.yaml"):
        find_config("something.yml")


def test_extends_finds_what_the_package_ships_unless_one_stands_beside(write):
    path = write("mine.yaml", "extends: rrm_7b.yaml\nsteps: 3\n")
    assert load_config(TrainConfig, path, ["data.train=d"]).judge.max_prompt_tokens == 4096
    write("rrm_7b.yaml", "model: {path: m}\noutput: o\njudge: {max_prompt_tokens: 7}\n")
    assert load_config(TrainConfig, path, ["data.train=d"]).judge.max_prompt_tokens == 7


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        Run(model="m").steps = 3
