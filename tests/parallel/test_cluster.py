"""Which processes make one job, by emulated environments."""

import jax
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.parallel import distributed
from rrm_jax.parallel.cluster import find_job, local_gpus

OWN = {"RRM_COORDINATOR": "10.0.0.1:1234", "RRM_PROCESSES": "4", "RRM_PROCESS": "2"}
# As srun sets them, for the second of two hosts with two tasks each.
SLURM = {
    "SLURM_JOB_ID": "61440",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
ONE = {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, in an environment that tells of no job."""

    def set_all(variables):
        for name in {**OWN, **SLURM, **OPEN_MPI}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_all({})
    return set_all


@pytest.fixture
def joined(monkeypatch):
    """What JAX is told: its own detection runs, and only the connection is left out."""
    from jax._src import clusters

    seen = {}

    def initialize(**given):
        names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
        values = [given.get(name) for name in names]
        method = given.get("cluster_detection_method")
        if method != "deactivate":
            values = clusters.ClusterEnv.auto_detect_unset_distributed_params(*values, method, 10)
        if values[0] is None:
            raise ValueError("coordinator_address should be defined.")
        seen.update(zip(names, values, strict=True), heartbeat=given["heartbeat_timeout_seconds"])

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return seen


def join(mode="auto"):
    with distributed.start(mode, lambda _: None):
        pass


def test_our_own_variables(environment, joined):
    environment(OWN | SLURM)  # ours count
    join()
    told = {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 2, "local_device_ids": None}
    assert joined == told | {"heartbeat": distributed.HEARTBEAT_SECONDS}
    assert distributed.HEARTBEAT_SECONDS < 30


def test_slurm_by_jax_own_detection(environment, joined):
    environment(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"})
    join("on")
    assert joined["coordinator_address"].startswith("node07:")
    assert (joined["num_processes"], joined["process_id"], joined["local_device_ids"]) == (4, 3, [4, 5, 6, 7])


def test_open_mpi_by_jax_own_detection(environment, joined):
    environment(OPEN_MPI | SLURM)  # mpirun in an allocation of Slurm's
    join()
    assert joined["coordinator_address"].startswith("10.96.0.1:")
    assert (joined["num_processes"], joined["process_id"]) == (2, 1)


def test_open_mpi_5_says_what_it_needs(environment, joined):
    environment({name: value for name, value in OPEN_MPI.items() if "orte" not in name})
    with pytest.raises(RrmError, match=r"Open MPI.*mpi4py.*RRM_COORDINATOR"):
        join()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SLURM | ONE,  # srun -n 1, and srun --pty bash
        SLURM | ONE | {"SLURM_NTASKS": "8"},  # the shell of an interactive step: the allocation has eight tasks
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script itself
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        OWN | {"RRM_PROCESSES": "1", "RRM_PROCESS": "0"},
    ],
)
def test_one_process_stays_alone_and_on_wants_others(environment, joined, variables):
    environment(variables)
    join()
    join("off")
    with pytest.raises(RrmError, match="--distributed on, but"):
        join("on")
    assert not joined


def test_off_looks_at_nothing(environment, joined):
    environment({"RRM_PROCESSES": "4"})
    join("off")
    assert not joined


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RRM_PROCESS": ""}, "RRM_COORDINATOR, RRM_PROCESSES given, but not RRM_PROCESS: "),
        ({"RRM_PROCESS": "4"}, r"RRM_PROCESS=4 is not one of 0 … 3"),
        ({"RRM_PROCESSES": "four"}, "RRM_PROCESSES=four is not a whole number"),
        ({"RRM_COORDINATOR": "10.0.0.1"}, "RRM_COORDINATOR=10.0.0.1 is not host:port"),
    ],
)
def test_variables_that_make_no_sense_are_named(changed, message):
    with pytest.raises(RrmError, match=message):
        find_job(OWN | changed)


@pytest.mark.parametrize(
    ("variables", "rank", "tasks", "own"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 0, 1, list(range(8))),  # one task a host: all of them
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 3, 4, [3]),
        ({"SLURM_GPUS_ON_NODE": "4"}, 1, 2, [2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "5"}, 3, 4, [0]),  # Slurm shows each task its own
        ({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_PER_TASK": "2"}, 1, 2, [0, 1]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, 1, None),
    ],
)
def test_gpus_of_a_task(variables, rank, tasks, own):
    assert local_gpus(variables, rank, tasks) == own


def test_gpus_that_cannot_be_shared():
    with pytest.raises(RrmError, match="3 tasks on this host cannot share its 8 GPUs"):
        local_gpus({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 0, 3)
