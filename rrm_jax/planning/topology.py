"""Devices that are not here, to compile for: `v5p:4x4x4`, a slice of TPU chips, `2xv5p:4x4x4`, two of them, or
`h100:8`, so many GPUs; or this machine's own processors, `cpu:8`, as so many devices.

What is needed is the compiler alone, libtpu or jax[cuda13], never the chip. `Topology.devices` is None where it is not
installed.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import jax
import jaxlib

from rrm_jax.errors import RrmError
from rrm_jax.parallel.accelerators import ACCELERATORS, Accelerator, accelerator

_TPUS = ("v4", "v5e", "v5p", "v6e")
BOX = 8  # GPUs that NVLink joins

# libtpu looks for a TPU, and asks the cloud about it, unless it is told. The type is any that it knows.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# Of what a device has: a TPU's runtime keeps some 2 %, and JAX takes 75 % of a GPU unless told otherwise.
_USABLE = {"tpu": 0.975, "gpu": 0.75, "cpu": 1.0}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`devices`: compile-only ones, or None, and then `missing` says what to install. `platform`: tpu, gpu or cpu."""

    name: str
    accelerator: Accelerator
    count: int
    platform: str
    devices: Any = dataclasses.field(repr=False)
    compiler: str
    missing: str = ""
    slices: int = 1

    @property
    def usable(self) -> int:
        """Bytes of a device's memory that programs can have."""
        return int(_USABLE[self.platform] * self.accelerator.memory)


def topology(name: str, compiling: bool = True) -> Topology:
    """What `name` says. Raises RrmError for a chip or a shape that there is none of.

    Without `compiling` no compiler is looked for, and `devices` is None.
    """
    several = re.fullmatch(r"(\d+)x([a-z].*)", name.lower())
    kind, colon, size = (several[2] if several else name.lower()).partition(":")
    slices = int(several[1]) if several else 1
    if slices < 1 or (several and kind not in _TPUS):
        raise RrmError(f"topology {name!r}: only slices of TPUs can be several, as 2xv5p:4x4x4; GPUs are a number")
    if kind in _TPUS:
        if not re.fullmatch(r"\d+(x\d+)*", size) or len(size.split("x")) != (2 if kind in ("v5e", "v6e") else 3):
            raise RrmError(f"topology {name!r}: a slice of {kind} is {_example(kind)}, say")
        return _tpu(name, kind, size, slices, compiling)
    if kind == "cpu":
        if colon and not (size.isdigit() and int(size)):
            raise RrmError(f"topology {name!r}: a CPU's devices are given by their number, as cpu:8")
        return _cpu(name, int(size or 1), compiling)
    if kind not in {known.name for known in ACCELERATORS}:
        names = ", ".join(known.name for known in ACCELERATORS)
        raise RrmError(
            f"topology {name!r} is not known: give a TPU slice, as v5p:4x4x4, GPUs, as h100:8 ({names}), or cpu:8"
        )
    if kind == "tpu7x":
        raise RrmError(f"topology {name!r}: slices of TPU7x cannot be described yet; those of {', '.join(_TPUS)} can")
    if colon and not (size.isdigit() and int(size)):
        raise RrmError(f"topology {name!r}: GPUs are given by their number, as {kind}:8")
    return _gpu(name, kind, int(size or 1), compiling)


def _example(kind: str) -> str:
    return f"{kind}:4x4" if kind in ("v5e", "v6e") else f"{kind}:4x4x4"


def _tpu(name: str, kind: str, size: str, slices: int, compiling: bool) -> Topology:
    chips = slices * math.prod(map(int, size.split("x")))
    made = Topology(name, accelerator(kind), chips, "tpu", None, "none", slices=slices)
    if not chips:
        raise RrmError(f"topology {name!r}: a slice of {kind} is {_example(kind)}, say")
    if not compiling:
        return made
    if importlib.util.find_spec("libtpu") is None:
        return dataclasses.replace(made, missing="pip install 'rrm-jax[tpu]'")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    # By JAX's default a v4 chip is two devices here; on a TPU VM it is one.
    how: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    how |= {"num_slices": slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(topology_name=f"{kind}:{size}", platform="tpu", **how)
    except Exception as error:  # of the compiler's own kinds
        raise RrmError(f"topology {name!r} is none that libtpu knows: {str(error).partition(';')[0]}") from None
    return dataclasses.replace(
        made, devices=list(described.devices), compiler=f"libtpu {importlib.metadata.version('libtpu')}"
    )


def _gpu(name: str, kind: str, count: int, compiling: bool) -> Topology:
    made = Topology(name, accelerator(kind), count, "gpu", None, "none")
    if not compiling:
        return made
    if kind not in _GPU_TARGETS:
        described = ", ".join(_GPU_TARGETS)
        return dataclasses.replace(made, missing=f"no description of {kind} for the compiler (there is of {described})")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        return dataclasses.replace(made, missing="pip install 'rrm-jax[cuda13]' (4 GB)")
    if count > BOX and count % BOX:
        raise RrmError(f"topology {name!r}: more than {BOX} GPUs come in whole boxes of {BOX}")
    from jax.experimental import topologies

    boxes = max(count // BOX, 1)
    text = _GPU_TARGET.format(**_GPU_TARGETS[kind])
    described = topologies.get_topology_desc(
        platform="cuda", target_config=text, topology=f"1x{boxes}x{min(count, BOX)}"
    )
    version = importlib.metadata.version("jax-cuda13-plugin")
    return dataclasses.replace(made, devices=list(described.devices), compiler=f"jax-cuda13-plugin {version}")


def _cpu(name: str, count: int, compiling: bool) -> Topology:
    """Devices that share this machine's memory alike. Of its speed nothing is known, and no seconds are estimated."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // count
    made = Topology(name, Accelerator("cpu", ("cpu",), 0.0, 0.0, memory), count, "cpu", None, "none")
    if not compiling:
        return made
    with contextlib.suppress(RuntimeError):  # JAX has begun already, with the devices that it has
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise RrmError(f"topology {name!r}: JAX has begun in this process with {len(devices)} CPU device(s)")
    return dataclasses.replace(made, devices=devices[:count], compiler=f"jaxlib {jaxlib.__version__}")


# From the data sheets, and the CUDA programming guide's table for compute capability 9.0.
_GPU_TARGETS = {
    "h100": {"name": "NVIDIA H100 80GB HBM3", "memory": 85_520_809_984, "bandwidth": 3_350_000_000_000},
    "h200": {"name": "NVIDIA H200", "memory": 151_397_597_184, "bandwidth": 4_800_000_000_000},
}
_GPU_TARGET = """
gpu_device_info {{
  name: "{name}"  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: 9  minor: 0  feature_extension: ACCELERATED_FEATURES }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  device_memory_size: {memory}  memory_bandwidth: {bandwidth}  l2_cache_size: 52428800
  pcie_bandwidth: 64000000000  device_address_bits: 64
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"  dnn_version: "9.10.0"
}}
platform_name: "CUDA"  device_description_str: "{name}"
dnn_version_info {{ major: 9  minor: 10  patch: 0 }}
"""
