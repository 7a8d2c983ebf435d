"""The table of accelerators: which device is which, and its figures against JAX's own of TPUs."""

from types import SimpleNamespace

import pytest
from jax.experimental.pallas import tpu as pltpu

from rrm_jax.errors import RrmError
from rrm_jax.parallel.accelerators import ACCELERATORS, accelerator, accelerator_of

# As CUDA and JAX name devices.
KINDS = {
    "NVIDIA A100-SXM4-40GB": "a100-40", "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA A100 80GB PCIe": "a100-80",
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100": "h100", "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl", "NVIDIA H200": "h200", "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA GH200 480GB": "gh200", "NVIDIA B200": "b200", "NVIDIA GB200": "gb200", "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090", "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p",
    "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x",
    "NVIDIA L40": None, "Tesla V100-SXM2-16GB": None, "TPU v3": None, "cpu": None,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_devices_by_the_names_that_jax_gives_them(kind, name):
    found = accelerator_of(SimpleNamespace(device_kind=kind))  # type: ignore[arg-type]
    assert (found and found.name) == name


def test_every_accelerator_is_found_by_its_name_and_by_a_device():
    names = [known.name for known in ACCELERATORS]
    assert len(set(names)) == len(names)
    assert set(names) == {name for name in KINDS.values() if name}  # none is hidden by one before it
    for known in ACCELERATORS:
        assert accelerator(known.name) is accelerator(known.name.upper()) is known


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(RrmError, match=r"accelerator 'h1000' is not known; known: gb200, .*h100, .*v6e, tpu7x"):
        accelerator("h1000")


@pytest.mark.parametrize(("name", "peak", "bandwidth"), [
    ("a100-40", 312e12, 1.555e12), ("a100-80", 312e12, 2.04e12), ("h100", 989e12, 3.35e12),
    ("h100-pcie", 756e12, 2.04e12), ("h200", 989e12, 4.8e12), ("b200", 2250e12, 8.0e12), ("v4", 275e12, 1.23e12),
    ("v5e", 197e12, 0.82e12), ("v5p", 459e12, 2.77e12), ("v6e", 918e12, 1.64e12), ("tpu7x", 1153.5e12, 3.7e12),
])  # fmt: skip
def test_data_sheets(name, peak, bandwidth):
    assert (accelerator(name).peak_flops, accelerator(name).bandwidth) == (peak, bandwidth)


@pytest.mark.parametrize(("name", "chip", "cores"), [
    ("v4", "TPU_V4", 2), ("v5e", "TPU_V5E", 1), ("v5p", "TPU_V5P", 2), ("v6e", "TPU_V6E", 1), ("tpu7x", "TPU_7X", 1),
])  # fmt: skip
def test_tpus_are_what_jax_says_of_them(name, chip, cores):
    """JAX tells of a core, of which a v4 or v5p device has two; for v5p it has 2.46e12 bytes/s, Google 2.77e12."""
    known, info = accelerator(name), pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[chip], cores)
    assert known.peak_flops == pytest.approx(cores * info.bf16_ops_per_second, rel=0.01)
    assert known.memory == pytest.approx(cores * info.hbm_capacity_bytes, rel=0.02)
    assert known.bandwidth == pytest.approx(cores * info.mem_bw_bytes_per_second, rel=0.15 if name == "v5p" else 0.01)


@pytest.mark.parametrize(("name", "mib"), [
    ("a100-40", 40_960), ("a100-80", 81_920), ("h100", 81_559), ("h200", 143_771), ("b200", 183_359),
    ("rtx4090", 24_564),
])  # fmt: skip
def test_memory_is_what_nvidia_smi_shows(name, mib):
    assert accelerator(name).memory == pytest.approx(mib * 2**20, rel=0.01)
