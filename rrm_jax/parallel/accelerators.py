"""What devices can do, by their makers' data sheets: the one table of arithmetic, bandwidth and memory.

Figures are of what JAX calls a device: a chip, but for TPU7x, whose two cores are devices of their own. FLOPs are dense
(NVIDIA prints those with sparsity, twice as many), in bfloat16 with float32 sums. Sources: NVIDIA's data sheets of A100
(SXM), H100 (SXM, PCIe, NVL), H200 (SXM, NVL), GH200, HGX B200, GB200 NVL72 and L40S, the Ada architecture's white paper
(RTX 4090), and Google's pages on Cloud TPU v4, v5e, v5p, v6e and TPU7x. A GB of memory is 2³⁰ bytes: an H100 of
80 GB shows 81,559 MiB. A program gets less than all this: some memory is taken before it starts (by an L40S's error
correction, 3 of 48 GB), and no kernel reaches the peak.
"""

import dataclasses
from typing import TYPE_CHECKING

from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    import jax

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A kind of device.

    `name` is what a command line takes; JAX's `device_kind` contains one of `kinds`, whatever the case. `peak_flops`
    are FLOPs a second (dense, bfloat16), `bandwidth` bytes a second of the device's memory, `memory` its bytes.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float
    bandwidth: float
    memory: int


# The first that matches a device is taken: "H100 PCIe" stands before "H100", "TPU v5 lite" before "TPU v5".
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("gb200", ("GB200",), 2500e12, 8.0e12, 186 * _GIB),
    Accelerator("b200", ("B200",), 2250e12, 8.0e12, 180 * _GIB),
    Accelerator("gh200", ("GH200",), 989e12, 4.0e12, 96 * _GIB),
    Accelerator("h200-nvl", ("H200 NVL",), 835e12, 4.8e12, 141 * _GIB),
    Accelerator("h200", ("H200",), 989e12, 4.8e12, 141 * _GIB),
    Accelerator("h100-pcie", ("H100 PCIe",), 756e12, 2.04e12, 80 * _GIB),
    Accelerator("h100-nvl", ("H100 NVL",), 835e12, 3.9e12, 94 * _GIB),
    Accelerator("h100", ("H100",), 989e12, 3.35e12, 80 * _GIB),
    Accelerator("a100-40", ("A100-SXM4-40GB", "A100-PCIE-40GB"), 312e12, 1.555e12, 40 * _GIB),
    Accelerator("a100-80", ("A100",), 312e12, 2.04e12, 80 * _GIB),
    Accelerator("l40s", ("L40S",), 362e12, 0.864e12, 48 * _GIB),
    Accelerator("rtx4090", ("RTX 4090",), 165.2e12, 1.008e12, 24 * _GIB),
    Accelerator("v4", ("TPU v4",), 275e12, 1.23e12, 32 * _GIB),
    Accelerator("v5e", ("TPU v5e", "TPU v5 lite"), 197e12, 0.82e12, 16 * _GIB),
    Accelerator("v5p", ("TPU v5",), 459e12, 2.77e12, 95 * _GIB),
    Accelerator("v6e", ("TPU v6",), 918e12, 1.64e12, 32 * _GIB),
    Accelerator("tpu7x", ("TPU7x",), 2307e12 / 2, 7.4e12 / 2, 96 * _GIB),
)


def accelerator(name: str) -> Accelerator:
    """By its short name, `h100` or `v5p`, say. Raises RrmError, which lists the names."""
    for known in ACCELERATORS:
        if known.name == name.lower():
            return known
    names = ", ".join(known.name for known in ACCELERATORS)
    raise RrmError(f"accelerator {name!r} is not known; known: {names}")


def accelerator_of(device: "jax.Device") -> Accelerator | None:
    """What a `jax.Device` is by its `device_kind`; None for a CPU, or a chip that is not in the table."""
    kind = device.device_kind.lower()
    return next((known for known in ACCELERATORS if any(part.lower() in kind for part in known.kinds)), None)
