"""Which processes make one job, as the environment tells it: our own variables, Slurm or Open MPI.

TPU VMs and Kubernetes are left to JAX's own detection (`distributed.py`), which asks their servers.
"""

import dataclasses
import glob
import re
from collections.abc import Mapping
from typing import Any

from rrm_jax.errors import RrmError

COORDINATOR, PROCESSES, PROCESS = OWN = ("RRM_COORDINATOR", "RRM_PROCESSES", "RRM_PROCESS")
# Without all of these JAX does not take a process for one of Slurm's: the shell of an allocation has only some.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes that are one job, and by whom it is known."""

    told_by: str
    processes: int
    arguments: dict[str, Any]
    """Of `jax.distributed.initialize`."""


def find_job(environment: Mapping[str, str]) -> Job | None:
    """The job that this process belongs to; None where these variables tell of none. A job may have one process.

    Raises RrmError for variables of ours that are incomplete or make no sense, naming them.
    """
    if any(environment.get(name) for name in OWN):
        return _own(environment)
    if all(environment.get(name) for name in _OPEN_MPI):  # before Slurm, under which mpirun may run
        here = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
        return _scheduled(environment, "Open MPI", "ompi", _number(environment, _OPEN_MPI[0]), _OPEN_MPI[2], here)
    if all(environment.get(name) for name in _SLURM):
        # A shell within an allocation is a step of one task, though SLURM_NTASKS is the allocation's.
        tasks = _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS"))
        here = _tasks_here(environment, tasks)
        return _scheduled(environment, "Slurm", "slurm", tasks, "SLURM_LOCALID", here)
    return None


def _own(environment: Mapping[str, str]) -> Job:
    missing = [name for name in OWN if not environment.get(name)]
    if missing:
        given = [name for name in OWN if name not in missing]
        raise RrmError(
            f"{', '.join(given)} given, but not {', '.join(missing)}: set {COORDINATOR}=host:port of process 0, "
            f"{PROCESSES}=how many, and {PROCESS}=0, 1, … in each, or none of them"
        )
    address, count, rank = environment[COORDINATOR], _number(environment, PROCESSES), _number(environment, PROCESS)
    if not re.fullmatch(r".+:\d{1,5}", address):
        raise RrmError(f"{COORDINATOR}={address} is not host:port")
    if not 0 <= rank < count:
        raise RrmError(f"{PROCESS}={rank} is not one of 0 … {count - 1} ({PROCESSES}={count})")
    arguments = {"coordinator_address": address, "num_processes": count, "process_id": rank}
    return Job(COORDINATOR, count, arguments | {"cluster_detection_method": "deactivate"})


def _scheduled(environment: Mapping[str, str], name: str, method: str, tasks: int, rank: str, tasks_here: int) -> Job:
    arguments: dict[str, Any] = {"cluster_detection_method": method, "num_processes": tasks}
    if not environment.get("JAX_LOCAL_DEVICE_IDS"):
        gpus = local_gpus(environment, _number(environment, rank), tasks_here)
        if gpus is not None:
            arguments["local_device_ids"] = gpus
    return Job(name, tasks, arguments)


def local_gpus(environment: Mapping[str, str], rank: int, tasks: int) -> list[int] | None:
    """The GPUs, of those that this process sees, that are its own; None where there is none.

    `rank` counts the `tasks` of this host. By itself JAX takes one GPU a task, also where a task was given all eight.
    Raises RrmError where the tasks cannot share the GPUs evenly.
    """
    seen = _gpus_seen(environment)
    if not seen:
        return None
    bound = environment.get("SLURM_GPUS_PER_TASK") or environment.get("SLURM_GPU_BIND", "none") != "none"
    if bound or seen < tasks:  # the scheduler shows each task its own
        return list(range(seen))
    if seen % tasks:
        raise RrmError(f"{tasks} tasks on this host cannot share its {seen} GPUs evenly; start one task a host")
    each = seen // tasks
    return list(range(rank * each, (rank + 1) * each))


def _gpus_seen(environment: Mapping[str, str]) -> int:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    return _number(environment, "SLURM_GPUS_ON_NODE", 0) or len(glob.glob("/dev/nvidia[0-9]*"))


def _tasks_here(environment: Mapping[str, str], tasks: int) -> int:
    """SLURM_STEP_TASKS_PER_NODE is, for example, 2(x3),1: three hosts with two tasks, then one with one."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        counts += [int(match[1])] * int(match[2] or 1) if match else []
    host = _number(environment, "SLURM_NODEID", 0)
    return counts[host] if host < len(counts) else tasks


def _number(environment: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environment.get(name)
    if not text and otherwise is not None:
        return otherwise
    try:
        return int(text or "")
    except ValueError:
        raise RrmError(f"{name}={text} is not a whole number") from None
