"""Loading the three kinds of model onto meshes, in both layouts."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rrm_jax.checkpoints.assets import copy_assets
from rrm_jax.checkpoints.convert import convert, export
from rrm_jax.checkpoints.inspect import describe
from rrm_jax.checkpoints.load import load_model, resolve_kind
from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.errors import RrmError
from rrm_jax.models.params import is_spec, param_specs, stack
from rrm_jax.parallel.mesh import MeshShape, make_mesh, param_sharding
from rrm_jax.testing import realistic_params, tiny_config, write_hf_checkpoint

CONFIG = tiny_config(num_layers=3)
FACTS = {"judge_template_sha256": "ab12"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same float32 weights as each kind of directory."""
    root = tmp_path_factory.mktemp("models")
    write_hf_checkpoint(root / "hf", CONFIG, seed=5, shards=2)
    convert(root / "hf", root / "converted")
    copy_assets(root / "hf", root / "run" / "assets")
    checkpoints = TrainingCheckpoints(root / "run" / "checkpoints", keep=2)
    masters = realistic_params(CONFIG, seed=5, stacked=True)
    checkpoints.save(3, jax.tree.map(np.zeros_like, masters), {"count": np.zeros((), np.int32)}, {"step": 3})
    checkpoints.save(10, masters, {"count": np.ones((), np.int32)}, {"step": 10, "facts": FACTS})
    checkpoints.close()
    return root


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshShape(), jax.devices()[:1])


@pytest.fixture(scope="module")
def eight():
    return make_mesh(MeshShape(data=2, fsdp=2, tensor=2))


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", ["hf", "converted", "run"])
def test_every_kind_gives_the_same_parameters_on_every_mesh(models, one, eight, kind, stacked):
    dtype = jnp.bfloat16  # the weights are float32, so loading rounds
    expected = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), realistic_params(CONFIG, seed=5, stacked=True))
    loaded = load_model(models / kind, mesh=eight, dtype=dtype, stacked=stacked)
    assert_same_bits(loaded.params if stacked else stack(loaded.params), expected)
    assert_same_bits(loaded.params, load_model(models / kind, mesh=one, dtype=dtype, stacked=stacked).params)
    specs = param_specs(CONFIG, stacked)
    jax.tree.map(
        lambda spec, x: np.testing.assert_equal(x.sharding.is_equivalent_to(param_sharding(eight, spec), x.ndim), True),
        specs,
        loaded.params,
        is_leaf=is_spec,
    )
    assert loaded.config == CONFIG


def test_what_goes_with_the_parameters(models, one):
    loaded = {kind: load_model(models / kind, mesh=one, dtype=jnp.float32) for kind in ("hf", "converted", "run")}
    for kind, model in loaded.items():
        assert resolve_kind(models / kind) == kind
        assert (model.assets / "config.json").is_file()
    assert loaded["hf"].fingerprint == loaded["converted"].fingerprint != loaded["run"].fingerprint
    assert loaded["run"].facts == FACTS | {"step": 10}
    about = describe(models / "run")
    assert about.steps == (3, 10)
    assert about.parameters == CONFIG.num_parameters
    assert about.dtypes == ("float32",)


def test_a_run_exports_and_converts_its_latest_step(models, one, tmp_path):
    export(models / "run", tmp_path / "exported")
    convert(models / "run", tmp_path / "converted", "bfloat16")
    expected = load_model(models / "hf", mesh=one, dtype=jnp.float32)
    exported = load_model(tmp_path / "exported", mesh=one, dtype=jnp.float32)
    assert_same_bits(exported.params, expected.params)
    assert exported.fingerprint == expected.fingerprint
    assert exported.facts == load_model(tmp_path / "converted", mesh=one, dtype=jnp.float32).facts
    assert exported.facts == FACTS | {"step": 10}
    assert describe(tmp_path / "converted").dtypes == ("bfloat16",)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_widening_is_exact(tmp_path, one, dtype):
    write_hf_checkpoint(tmp_path / "hf", CONFIG, dtype=dtype)
    convert(tmp_path / "hf", tmp_path / "c")
    stored = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), realistic_params(CONFIG))
    for kind in ("hf", "c"):
        assert_same_bits(load_model(tmp_path / kind, mesh=one, dtype=jnp.float32, stacked=True).params, stored)


def test_paths_that_are_no_model(tmp_path, models, one):
    def refused(path) -> str:
        with pytest.raises(RrmError) as raised:
            load_model(path, mesh=one, dtype=jnp.float32)
        return str(raised.value)

    assert "does not exist" in refused(tmp_path / "nowhere")
    assert f"did you mean {models / 'hf'}?" in refused(models / "hff")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    for looked_for in ("config.json", "rrm_checkpoint.json", "checkpoints/"):
        assert looked_for in refused(tmp_path / "empty")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").write_bytes((models / "hf" / "config.json").read_bytes())
    assert "config.json is missing" in refused(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "llama"}')
    assert "bare/config.json: model_type is 'llama'" in refused(tmp_path / "bare")
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    copy_assets(models / "hf", tmp_path / "run" / "assets")
    assert "without a complete checkpoint" in refused(tmp_path / "run")


def test_a_mesh_that_does_not_divide_the_model_is_refused(models):
    with pytest.raises(RrmError, match="k_proj"):
        load_model(models / "converted", mesh=make_mesh(MeshShape(fsdp=1, tensor=8)), dtype=jnp.float32)
