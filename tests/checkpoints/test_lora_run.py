"""A run that trained adapters, read as the model that base and adapters are together."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

from rrm_jax.checkpoints.assets import copy_assets
from rrm_jax.checkpoints.convert import convert, export
from rrm_jax.checkpoints.inspect import describe
from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.cli.main import _app
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.models import lora
from rrm_jax.models.decoder import forward, unembed
from rrm_jax.models.params import stack
from rrm_jax.parallel.mesh import MeshShape, make_mesh
from rrm_jax.testing import realistic_params, tiny_config, write_hf_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiles")

WORDS = [chr(code) for code in range(32, 127)] + ["\n"]
CONFIG = tiny_config(vocab_size=104, max_positions=2048)
RANK, ALPHA = 4, 6.0


def adapters_of(seed: int, rank: int = RANK):
    rng = np.random.default_rng(seed)
    draw = lambda x: 0.1 * rng.standard_normal(x.shape).astype(x.dtype)  # noqa: E731
    return jax.tree.map(draw, lora.abstract_adapters(CONFIG, rank))


def write_base(directory: Path, seed: int = 5, dtype=ml_dtypes.bfloat16) -> Path:
    write_hf_checkpoint(directory, CONFIG, seed=seed, dtype=dtype, shards=2)
    assert write_word_tokenizer(directory, WORDS) <= CONFIG.vocab_size
    return directory


def write_run(
    root: Path, output: str, base: str, steps: dict[int, int], fingerprint: str | None = None, rank: int = RANK
) -> Path:
    """RUN as training leaves it, started in `root`; `steps` gives each saved step the seed of its adapters."""
    run, source = root / output, open_source(root / base)
    copy_assets(source.assets, run / "assets")
    settings = {
        "output": output,
        "model": {"path": base, "lora": {"rank": RANK, "alpha": ALPHA}},
        "checkpoint": {"best": "accuracy"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    checkpoints = TrainingCheckpoints(run / "checkpoints", keep=3)
    facts = {"base_fingerprint": fingerprint or source.fingerprint()}
    for step, seed in steps.items():
        opt_state = {"count": np.zeros((), np.int32)}
        checkpoints.save(step, adapters_of(seed, rank), opt_state, {"step": step, "facts": facts})
    checkpoints.close()
    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_base(root / "models" / "base")
    write_run(root, "runs/adapted", "models/base", {1: 1, 2: 2})
    return root


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshShape(), jax.devices()[:1])


def base_params():
    return jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), realistic_params(CONFIG, seed=5))


def logits(params) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, size=(2, 12), dtype=np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
    run = jax.jit(lambda params: unembed(CONFIG, params, forward(CONFIG, params, tokens, positions, positions + 1)[0]))
    return np.asarray(run(params))


def all_tensors(directory: Path) -> dict[str, np.ndarray]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_hand(root: Path, seed: int) -> dict[str, np.ndarray]:
    """PEFT's formula on the base's files: W + (alpha / r) · B · A, in float64."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in all_tensors(root / "models" / "base").items()}
    layers = adapters_of(seed)["layers"]
    names = {f"self_attn.{x}_proj": layers["attention"][f"{x}_kernel"] for x in "qkvo"}
    names |= {f"mlp.{x}_proj": layers["mlp"][f"{x}_kernel"] for x in ("gate", "up", "down")}
    for name, pair in names.items():
        for layer in range(CONFIG.num_layers):
            b, a = (pair[part][layer].astype(np.float64) for part in ("up", "down"))
            change = ALPHA / RANK * b.reshape(-1, RANK) @ a.reshape(RANK, -1)
            tensors[f"model.layers.{layer}.{name}.weight"] += change
    return tensors


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_loads_as_the_sum_of_base_and_adapters(world, shape, stacked):
    """Logits of the loaded model against those of the base with adapters that are never merged, in float32."""
    mesh = make_mesh(MeshShape(*shape), jax.devices()[: int(np.prod(shape))])
    loaded = load_model(world / "runs" / "adapted", mesh=mesh, dtype=jnp.float32, stacked=stacked)
    params = jax.device_get(loaded.params if stacked else stack(loaded.params))
    expected = logits(lora.adapt(base_params(), adapters_of(2), ALPHA, RANK))
    assert np.abs(logits(params) - expected).max() <= 1e-5 * expected.std()
    assert np.abs(logits(base_params()) - expected).max() > 0.1 * expected.std()
    merged = lora.merge(base_params(), adapters_of(2), ALPHA, RANK)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), params, merged)
    assert loaded.facts["step"] == 2


def test_what_is_loaded_in_bfloat16_is_rounded_once(world, one):
    wide, narrow = (load_model(world / "runs" / "adapted", mesh=one, dtype=d) for d in ("float32", "bfloat16"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b), wide.params, narrow.params)


def test_exports_pefts_formula(world, tmp_path):
    run = world / "runs" / "adapted"
    result = CliRunner().invoke(_app, ["export", str(run), str(tmp_path / "exported")])
    assert result.exit_code == 0, result.output
    exported, base = all_tensors(tmp_path / "exported"), all_tensors(world / "models" / "base")
    expected = by_hand(world, seed=2)
    assert exported.keys() == expected.keys() == base.keys()
    for name, tensor in exported.items():
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=1e-6)  # float32 sums of values to 5
        touched = name.endswith("_proj.weight")
        assert (tensor != base[name].astype(np.float32)).any() == touched, name
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["torch_dtype"] == "float32"
    assert (tmp_path / "exported" / "tokenizer.json").is_file()
    export(run, tmp_path / "narrow", "bfloat16")
    for name, tensor in all_tensors(tmp_path / "narrow").items():
        assert tensor.tobytes() == exported[name].astype(ml_dtypes.bfloat16).tobytes()
    convert(run, tmp_path / "converted")
    assert open_source(tmp_path / "converted").fingerprint() == open_source(tmp_path / "exported").fingerprint()


def test_judges_as_its_export_does(world, tmp_path):
    export(world / "runs" / "adapted", tmp_path / "exported")
    pairs = [{"id": str(at), "query": f"q{at}", "response_1": "a", "response_2": "b"} for at in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")

    def judged(model: Path) -> list[dict]:
        out = tmp_path / f"{model.name}.jsonl"
        options = ["--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(out), "--max-new-tokens", "8"]
        result = CliRunner().invoke(_app, ["judge", "--model", str(model), *options, "--mesh", "fsdp=1,data=8"])
        assert result.exit_code == 0, (result.output, result.exception)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return sorted(rows, key=lambda row: row["id"])

    ours, exported, base = map(judged, (world / "runs" / "adapted", tmp_path / "exported", world / "models" / "base"))
    text = lambda rows: [vote["text"] for row in rows for vote in row["votes"]]  # noqa: E731
    assert len(text(ours)) == 3
    assert text(ours) == text(exported) != text(base)


def test_is_described_and_named_by_what_it_holds(world, tmp_path):
    run = world / "runs" / "adapted"
    about = describe(run)
    assert (about.kind, about.steps, about.dtypes) == ("run", (1, 2), ("float32",))
    assert about.parameters == CONFIG.num_parameters
    prints = {describe(path).fingerprint for path in (run / "checkpoints" / "1", run, world / "models" / "base")}
    assert len(prints) == 3
    assert describe(run / "checkpoints" / "2").fingerprint == about.fingerprint
    other = yaml.safe_load((run / "config.yaml").read_text())
    shutil.copytree(run, tmp_path / "run")
    other["model"] |= {"path": str(world / "models" / "base"), "lora": {"rank": RANK, "alpha": 2 * ALPHA}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(other))
    assert describe(tmp_path / "run").fingerprint not in prints


@pytest.mark.parametrize("kind", ["converted", "run", "adapted"])
def test_the_base_may_be_of_any_kind(world, tmp_path, one, kind):
    if kind == "converted":
        convert(world / "models" / "base", tmp_path / "base")
    elif kind == "run":
        copy_assets(world / "models" / "base", tmp_path / "base" / "assets")
        checkpoints = TrainingCheckpoints(tmp_path / "base" / "checkpoints", keep=1)
        checkpoints.save(7, base_params(), {"count": np.zeros((), np.int32)}, {"step": 7})
        checkpoints.close()
    else:
        write_base(tmp_path / "first")
        write_run(tmp_path, "base", "first", {1: 3})
    run = write_run(tmp_path, "run", "base/checkpoints/7" if kind == "run" else "base", {1: 2})
    base = load_model(tmp_path / "base", mesh=one, dtype=jnp.float32, stacked=True).params
    expected = lora.merge(base, adapters_of(2), ALPHA, RANK)
    loaded = load_model(run, mesh=one, dtype=jnp.float32, stacked=True).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), loaded, expected)


def test_the_base_is_found_from_where_the_run_was_started_or_from_here(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = open_source(world / "runs" / "adapted").fingerprint()  # relative to where neither was started
    monkeypatch.chdir(world / "runs")
    assert open_source("adapted").fingerprint() == open_source("adapted/checkpoints/2").fingerprint() == expected
    shutil.copytree(world / "runs" / "adapted", tmp_path / "moved")
    with pytest.raises(RrmError, match=r"moved holds adapters of models/base, which is needed .* does not exist"):
        open_source(tmp_path / "moved")
    monkeypatch.chdir(world)
    assert open_source(tmp_path / "moved").fingerprint() == expected


def test_a_base_that_is_gone_or_another_is_refused(tmp_path, one):
    write_base(tmp_path / "base")
    run = write_run(tmp_path, "run", "base", {1: 1})

    def refused(of: Path = run) -> str:
        with pytest.raises(RrmError) as raised:
            load_model(of, mesh=one, dtype=jnp.float32)
        return str(raised.value)

    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    message = refused()
    for part in (f"{run} holds adapters of", "base does not exist", f"set model.path in {run / 'config.yaml'}"):
        assert part in message
    write_base(tmp_path / "base", seed=6)
    wanted, found = (open_source(tmp_path / name).fingerprint() for name in ("elsewhere", "base"))
    assert f"fingerprint {wanted}, not {found}; put back the one" in refused()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"]["path"] = str(tmp_path / "elsewhere")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    load_model(run, mesh=one, dtype=jnp.float32)  # as the messages said


def test_adapters_and_settings_that_do_not_fit_are_refused(world, tmp_path):
    write_base(tmp_path / "base")
    other = write_run(tmp_path, "other", "base", {1: 1}, rank=2)
    shape = r"q_kernel.down in .*: shape \[2, 2, 32\], not \[2, 4, 32\]"
    with pytest.raises(RrmError, match=rf"does not hold adapters of rank 4[\s\S]*{shape}"):
        open_source(other)
    (other / "config.yaml").write_text("output: other\nmodel: {path: base, lora: {rank: 4}}\n")
    with pytest.raises(RrmError, match=r"other/config.yaml does not say .*KeyError: 'alpha'"):
        open_source(other)
    (other / "config.yaml").write_text("output: other\nmodel: {path: base, lora: null}\n")
    with pytest.raises(RrmError, match="embedding is missing"):  # nor are adapters taken for a whole model
        open_source(other)
