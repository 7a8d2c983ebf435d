"""The scripts for clouds and clusters: what they would run, and what they do with stand-ins for gcloud and Slurm."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parent.parent.parent / "launch"
TRAIN = ("rrm", "train", "rrm_32b.yaml", "judge.template=it's mine.toml")


def script(name: str, *arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    known = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    if path is not None:
        known["PATH"] = f"{path}{os.pathsep}{known['PATH']}"
    command = ["bash", str(LAUNCH / name), *arguments]
    return subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=60)


def words(name: str, *arguments: str) -> list[list[str]]:
    """The commands of a dry run, as a shell would read them; nothing real is in reach."""
    with tempfile.TemporaryDirectory() as tools:
        for forbidden in ("gcloud", "kubectl", "srun", "python3"):
            program(Path(tools) / forbidden, "exit 99")
        at = 1 if name in ("tpu_vm.sh", "gke.sh") else 0  # after the verb
        done = script(name, *arguments[:at], "--dry-run", *arguments[at:], path=Path(tools))
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh", "gpu_box.sh", "slurm.sbatch"])
def test_help_is_what_stands_at_the_head(name):
    done = script(name, "--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout
    assert "#" not in done.stdout.split("\n")[0]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    files = [*map(str, LAUNCH.glob("*.sh")), str(LAUNCH / "slurm.sbatch")]
    done = subprocess.run(["shellcheck", "-x", *files], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


WHERE = ["--zone=us-east5-a", "--project=mine"]
TPU = ("--name", "pod", "--zone", "us-east5-a", "--project", "mine")


def test_a_tpu_slice_is_asked_for():
    asked, looked = words("tpu_vm.sh", "create", *TPU, "--type", "v5p-128", "--spot")
    kind = ["--node-id=pod", "--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"]
    assert asked == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod", *kind, *WHERE]
    assert looked[3:6] == ["queued-resources", "describe", "pod"]


def test_a_tpu_slice_is_given_back():
    gone = ["gcloud", "compute", "tpus", "queued-resources", "delete", "pod", "--force", "--quiet", *WHERE]
    assert words("tpu_vm.sh", "delete", *TPU) == [gone]


def test_a_command_reaches_all_hosts_word_for_word():
    (line,) = words("tpu_vm.sh", "run", *TPU, "--", *TRAIN)
    assert line[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", *WHERE]
    assert line[8] == "--worker=all"
    inner = shlex.split(line[9].removeprefix("--command="))
    started = shlex.split(inner[inner.index("-c") + 1])
    assert started[started.index("rrm") :][:7] == [*TRAIN, "--distributed", "on", "--auto-resume"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "--name", "pod"), "--zone is needed"),
        (("create", *TPU, "--type", "v9-8"), "--type v9-8: give --runtime"),
        (("run", *TPU), "give the command to run after --"),
        (("run", *TPU, "rrm", "train"), "no option rrm; the command to run stands after --"),
        (("logs", *TPU, "--worker", "x"), "--worker takes a number, not 'x'"),
        (("create", "--name"), "--name needs a value"),
        (("launch",), "no verb 'launch'"),
    ],
)
def test_wrong_options_are_named(arguments, message):
    done = script("tpu_vm.sh", arguments[0], "--dry-run", *arguments[1:])
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr


@pytest.fixture
def cloud(tmp_path):
    """A gcloud whose slice has one host, `vm`, and a list of what the runs there exit with."""
    tools, vm = tmp_path / "tools", tmp_path / "vm"
    vm.mkdir()
    program(
        tools / "gcloud",
        f"""cd {tmp_path}; echo "$*" >> asked
case "$3 $4" in
  "queued-resources describe") head -n 1 states; [ $(wc -l < states) = 1 ] || sed -i 1d states ;;
  "queued-resources create") echo ACTIVE > states ;;
  "tpu-vm scp") cp "$5" vm/rrm.bundle ;;
  "tpu-vm ssh") for last; do :; done; cd vm; bash -c "${{last#--command=}}" ;;
esac""",
    )
    # Each run takes the next exit code.
    ends = f"""echo "$*" >> {tmp_path}/ran
case "$*" in *--help) exit 0 ;; esac
code=$(head -n 1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; exit $code"""
    program(tools / "python3", ends)
    program(tools / "sudo", "true")
    return tmp_path


def watch(cloud: Path, states: str, codes: str) -> tuple[int, str, str, str]:
    """(exit code, what was said, what gcloud was asked, what ran on the host)."""
    (cloud / "states").write_text(states)
    (cloud / "codes").write_text(codes)
    options = ("--type", "v6e-16", "--restarts", "2", "--", *TRAIN)
    done = script("tpu_vm.sh", "watch", *TPU, *options, path=cloud / "tools", RRM_POLL_SECONDS="0.2")
    read = [(cloud / name).read_text() if (cloud / name).exists() else "" for name in ("asked", "ran")]
    return done.returncode, done.stderr, *read


def test_watch_makes_a_preempted_slice_anew_and_goes_on_until_the_run_is_complete(cloud):
    code, said, asked, ran = watch(cloud, "WAITING_FOR_RESOURCES\nSUSPENDED\n", "134\n0\n")
    assert code == 0, said
    verbs = [line.split()[3] for line in asked.splitlines() if "queued-resources" in line]
    assert [verb for verb in verbs if verb != "describe"] == ["delete", "create"]
    assert "restart 1 of 2" in said
    assert "complete" in said
    assert ran.count("launch/local.py --extra tpu rrm train rrm_32b.yaml judge.template=it's mine.toml") == 2
    assert (cloud / "vm" / "rrm" / "pyproject.toml").exists()  # the commit that is checked out here


@pytest.mark.parametrize(("codes", "runs", "message"), [("2\n", 1, "wrong input"), ("1\n1\n1\n1\n", 3, "exit code 1")])
def test_watch_gives_up(cloud, codes, runs, message):
    code, said, _, ran = watch(cloud, "SUSPENDED\n", codes)
    assert code == 2
    assert message in said
    assert ran.count(" train ") == runs


def jobset(*arguments: str) -> dict:
    options = ("--name", "pod", "--image", "image:1", "--claim", "shared", "--hosts", "16", *arguments)
    done = script("gke.sh", "apply", *options, "--dry-run", "--", *TRAIN, 'x="q"\\')
    assert done.returncode == 0, done.stderr
    text, _, last = done.stdout.rstrip().rpartition("\n")
    assert last == "kubectl apply -f -"
    return yaml.safe_load(text)


def test_a_jobset_for_tpus():
    made = jobset("--tpu", "tpu-v5p-slice", "--topology", "4x4x4", "--restarts", "7")
    assert (made["metadata"]["name"], made["spec"]["failurePolicy"]["maxRestarts"]) == ("pod", 7)
    (job,) = made["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (16, 16, "Indexed")
    pod = spec["template"]["spec"]
    selector = {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "4x4x4"}
    assert pod["nodeSelector"] == selector
    (container,) = pod["containers"]
    # A pod that is drained exits with something that Kubernetes does not take for complete.
    joined = ["--distributed", "on", "--auto-resume", "--stop-exit-code", "75"]
    assert container["command"] == [*TRAIN, 'x="q"\\', *joined]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    told = {variable["name"]: variable.get("value") for variable in container["env"]}
    # JobSet calls its pods SET-JOB-0-INDEX.SET.
    assert told == {"RRM_COORDINATOR": f"pod-{job['name']}-0-0.pod:8476", "RRM_PROCESSES": "16", "RRM_PROCESS": None}
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]


def test_a_jobset_for_gpus():
    pod = jobset("--gpu", "nvidia-h100-80gb")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_a_jobset_is_followed_and_removed():
    (logs,), (gone,) = words("gke.sh", "logs", "--name", "pod"), words("gke.sh", "delete", "--name", "pod")
    assert logs[:3] == ["kubectl", "logs", "--follow"]
    assert "jobset.sigs.k8s.io/jobset-name=pod" in logs[3]
    assert gone == ["kubectl", "delete", "jobset/pod"]


def test_a_gpu_box_runs_what_it_says_and_starts_again(tmp_path):
    (line,) = words("gpu_box.sh", "--extra", "cuda12", *TRAIN)
    local = str(LAUNCH / "local.py")
    assert line == ["python3", local, "--extra", "cuda12", *TRAIN, "--auto-resume"]
    program(tmp_path / "nvidia-smi", "echo 575.57.08")
    program(tmp_path / "python3", f'echo "$*" >> {tmp_path}/ran; [ $(wc -l < {tmp_path}/ran) = 3 ] || exit 134')
    done = script("gpu_box.sh", *TRAIN, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").read_text().splitlines() == [" ".join(line[1:])] * 3  # that driver is for CUDA 12


def test_a_gpu_box_passes_sigterm_on_and_does_not_start_again(tmp_path):
    program(tmp_path / "python3", f"trap 'echo told; exit 143' TERM; touch {tmp_path}/up; while :; do sleep 0.1; done")
    job = subprocess.Popen(
        ["bash", str(LAUNCH / "gpu_box.sh"), "--extra", "cuda13", *TRAIN],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=30)[0] == "told\n"
    assert job.returncode == 143


@pytest.fixture
def slurm(tmp_path):
    """A checkout that is set up, and Slurm's commands."""
    program(tmp_path / ".venv" / "bin" / "rrm", "true")
    for name in ("scancel", "scontrol"):
        program(tmp_path / name, f'echo "{name} $*" >> {tmp_path}/asked')
    return tmp_path, {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_ON_NODE": "96",
        "SLURM_NTASKS_PER_NODE": "8",
    }


def test_slurm_starts_a_step_and_starts_it_again(slurm):
    home, variables = slurm
    program(home / "srun", f'echo "$*" >> {home}/asked; [ $(wc -l < {home}/asked) = 2 ] || exit 134')
    done = script("slurm.sbatch", *TRAIN, path=home, **variables)
    assert done.returncode == 0, done.stderr
    step = "--kill-on-bad-exit=1 --label --cpu-bind=none --cpus-per-task=12"
    ran = f"{step} {home}/.venv/bin/{' '.join(TRAIN)} --distributed auto --auto-resume"
    assert (home / "asked").read_text().splitlines() == [ran, ran]


def test_slurm_before_its_time_limit_saves_and_queues_the_job_again(slurm):
    home, variables = slurm
    program(home / "srun", f"touch {home}/up; while ! grep -q scancel {home}/asked; do sleep 0.1; done 2> /dev/null")
    job = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), *TRAIN],
        env=os.environ | variables | {"PATH": f"{home}:{os.environ['PATH']}"},
    )
    while not (home / "up").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 0
    assert (home / "asked").read_text().splitlines() == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_slurm_names_a_checkout_that_is_not_set_up(tmp_path):
    done = script("slurm.sbatch", *TRAIN, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert f"no {tmp_path}/.venv/bin/rrm: submit from the checkout" in done.stderr
