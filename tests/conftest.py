"""All tests run on 8 fake CPU devices; a test that wants one takes `jax.devices()[:1]`."""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("NPROC", "16")  # 8 fake devices on few cores: enough threads for every collective
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pathlib import Path

import jax
import pytest
from hypothesis import settings

# The same examples each time, so that a run's outcome is the code's; `--hypothesis-profile default` draws new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

_REAL = Path(os.environ.get("RRM_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Neighbours stay together, as they compile the same programs, until a worker has nothing left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def _few_memory_maps():
    """Each program on a CPU holds hundreds of memory maps, and a process that wants too many of them is ended.

    They are let go well before the engine would do so in the midst of a test that counts compilations.
    """
    yield
    from rrm_jax.sampling.engine import MOST_MEMORY_MAPS, memory_maps

    if memory_maps() > 0.6 * MOST_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real files for wider tests, where there are any; a test that needs them skips otherwise."""
    if not _REAL.is_dir():
        pytest.skip(f"no real data files at {_REAL} (set RRM_TEST_DATA to their folder)")
    return _REAL


@pytest.fixture(scope="session")
def r1_tokenizer_dir(real_data: Path) -> Path:
    """The DeepSeek-R1-Distill-Qwen tokenizer's files."""
    return real_data / "tokenizers" / "deepseek_r1_distill_qwen"


@pytest.fixture(scope="module")
def quick_compiles():
    """For modules whose time goes into compiling: XLA leaves the machine code unoptimised, values stay the same."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
