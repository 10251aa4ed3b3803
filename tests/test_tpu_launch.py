"""Launching on TPUs: the exact commands of each step, restarts, and what runs on a worker.

Nothing here reaches a cloud: `--dry-run` runs nothing, and elsewhere gcloud is a stub.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VM = ["--name=bert", "--zone=us-west4-a", "--type=v5litepod-256"]
GKE = ["--name=bert", "--cluster=tpus", "--zone=us-west4-a", "--type=v5litepod-256"]
DATA = ["--bucket=my-bucket", "--corpus=gs://my-bucket/corpora/wiki"]
ENTRY = ["python", "-m", "bert_jax.main", "--config.corpus=corpora/wiki",
         "--workdir=gs://my-bucket/runs/base"]  # fmt: skip
STARTED = "python -m bert_jax.main --config.corpus=corpora/wiki --workdir=/gcs/my-bucket/runs/base"
QR = "gcloud compute tpus queued-resources"
ON_ALL = f"{QR} ssh bert --node=all --worker=all"
AT = "--zone=us-west4-a"

CREATE = (
    f"{QR} create bert --accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite "
    f"--node-id=bert {AT}"
)
STATE = f"{QR} describe bert --format='value(state.state)' {AT}"
WAIT = [STATE, f"{ON_ALL} --command=true {AT}"]
INSTALL = [
    "tar -czf /scratch/bert_jax-bert.tgz --exclude=__pycache__ bert_jax benchmarks configs launch "
    "pyproject.toml requirements.txt",
    f"{QR} scp /scratch/bert_jax-bert.tgz bert:bert_jax.tgz --node=all --worker=all {AT}",
    f"{ON_ALL} --command='mkdir -p bert_jax && tar -xzf bert_jax.tgz -C bert_jax && "
    rf"bash bert_jax/launch/worker.sh install '\''my-bucket'\''' {AT}",
]
CORPUS = (
    f"{ON_ALL} --command='mkdir -p bert_jax/corpora/wiki && gcloud storage rsync --recursive "
    f"gs://my-bucket/corpora/wiki bert_jax/corpora/wiki' {AT}"
)
RUN = f"{ON_ALL} --command='bash bert_jax/launch/worker.sh start my-bucket {STARTED}' {AT}"
STATUS = [STATE, f"{ON_ALL} --command='bash bert_jax/launch/worker.sh status' {AT}"]
DELETE = f"{QR} delete bert --force --quiet {AT}"
WATCH = [
    *STATUS,
    "# when a slice was preempted (SUSPENDED, FAILED):",
    *[DELETE, CREATE, *WAIT, *INSTALL, CORPUS, RUN],
    "# when the run has saved and asks to be started again (75), or was killed:",
    RUN,
]

XPK_AT = "--cluster=tpus --zone=us-west4-a"
XPK_CREATE = (
    "xpk cluster create --tpu-type=v5litepod-256 --num-slices=1 --on-demand "
    f"--enable-gcsfuse-csi-driver {XPK_AT}"
)
XPK_MOUNT = (
    "xpk storage attach my-bucket --type=gcsfuse --bucket=my-bucket --mount-point=/gcs/my-bucket "
    "--readonly=false --size=1 --auto-mount=false --no-prefetch-metadata --mount-options="
    f"implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0 {XPK_AT}"
)
XPK_RUN = (
    "xpk workload create --workload=bert --tpu-type=v5litepod-256 --num-slices=1 "
    r"--command='pip install --quiet -r requirements.txt '\''jax[tpu]'\'' && mkdir -p corpora && "
    f"cp -r /gcs/my-bucket/corpora/wiki corpora/ && exec {STARTED}' "
    "--base-docker-image=python:3.12 --script-dir=. --max-restarts=1000 "
    "--restart-on-exit-codes=75 --termination-grace-period-seconds=300 --storage=my-bucket "
    f"{XPK_AT}"
)
XPK_WATCH = f"xpk workload list --wait-for-job-completion=bert {XPK_AT}"


@pytest.fixture
def cloud(tmp_path):
    """Runs a script where `gcloud`, `xpk` and `kubectl` write down their words and obey `answer`.

    Returns run(script, *arguments, **environment); run.calls() are the calls so far.
    """
    bin_folder, log = tmp_path / "bin", tmp_path / "calls"
    bin_folder.mkdir()
    log.touch()
    answer = tmp_path / "answer"
    answer.write_text("")
    for name in ("gcloud", "xpk", "kubectl"):
        stub = bin_folder / name
        stub.write_text(
            f'#!/usr/bin/env bash\nprintf "%s\\0" {name} "$@" >> {log}\necho >> {log}\n'
            f"source {answer}\n"
        )
        stub.chmod(0o755)

    def run(script, *arguments, **environment):
        # Nothing else, so that no setting comes from the machine.
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        clean = {"PATH": path, "HOME": str(tmp_path), "TMPDIR": "/scratch"}
        return subprocess.run(
            ["bash", str(ROOT / "launch" / script), *arguments],
            env=clean | environment, text=True, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    run.calls = lambda: [call.split("\0")[:-1] for call in log.read_text().splitlines()]
    run.answer = answer
    return run


def dry(cloud, script: str, *arguments: str, **environment: str) -> list[str]:
    result = cloud(script, arguments[0], "--dry-run", *arguments[1:], **environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert cloud.calls() == []  # nothing was executed
    return result.stdout.splitlines()


# The commands of each step.


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("create", [CREATE]),
        ("wait", WAIT),
        ("install", INSTALL),
        ("corpus", [CORPUS]),
        ("run", [RUN]),
        ("watch", WATCH),
        ("status", STATUS),
        ("stop", [f"{ON_ALL} --command='bash bert_jax/launch/worker.sh stop' {AT}"]),
        ("delete", [DELETE]),
        ("up", [CREATE, *WAIT, *INSTALL, CORPUS, RUN, *WATCH]),
    ],
)
def test_tpu_vm_prints_the_commands_of_each_step(cloud, step, expected):
    assert dry(cloud, "tpu_vm.sh", step, *VM, *DATA, "--", *ENTRY) == expected


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("create", [XPK_CREATE]),
        ("mount", [XPK_MOUNT]),
        ("run", [XPK_RUN]),
        ("watch", [XPK_WATCH]),
        ("status", [f"xpk workload list --filter-by-job=bert {XPK_AT}"]),
        ("stop", [f"xpk workload delete --workload=bert --force {XPK_AT}"]),
        ("delete", [f"xpk cluster delete --force {XPK_AT}"]),
        ("up", [XPK_CREATE, XPK_MOUNT, XPK_RUN, XPK_WATCH]),
    ],
)
def test_gke_prints_the_commands_of_each_step(cloud, step, expected):
    assert dry(cloud, "gke.sh", step, *GKE, *DATA, "--", *ENTRY) == expected


def test_logs_are_those_of_one_worker_of_one_slice(cloud):
    chosen = ["--slice=1", "--worker=3", "--project=p"]
    assert dry(cloud, "tpu_vm.sh", "logs", *VM, *chosen) == [
        f"{QR} ssh bert --node=1 --worker=3 --command='tail -n 50 -F bert_jax/run.log' {AT} "
        "--project=p"
    ]
    assert dry(cloud, "gke.sh", "logs", *GKE, *chosen) == [
        "gcloud container clusters get-credentials tpus --location=us-west4 --project=p",
        "kubectl logs --follow --tail=50 --selector=jobset.sigs.k8s.io/jobset-name=bert,"
        "jobset.sigs.k8s.io/job-index=1,batch.kubernetes.io/job-completion-index=3",
    ]


@pytest.mark.parametrize(
    ("type", "version"),
    [
        ("v3-8", "tpu-ubuntu2204-base"),
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_each_type_gets_the_runtime_version_for_jax(cloud, type, version):
    (line,) = dry(cloud, "tpu_vm.sh", "create", "--name=a", "--zone=z", f"--type={type}")
    assert f"--accelerator-type={type} --runtime-version={version} " in line


def test_several_spot_slices(cloud):
    more = ["--slices=4", "--spot", "--project=my-project"]
    (line,) = dry(cloud, "tpu_vm.sh", "create", *VM, *more)
    assert line.endswith(f"--node-count=4 --node-prefix=bert --spot {AT} --project=my-project")
    (line,) = dry(cloud, "tpu_vm.sh", "create", *VM, "--reserved")
    assert line.endswith(f"--node-id=bert --reserved {AT}")
    (line,) = dry(cloud, "gke.sh", "create", *GKE, *more)
    assert "--num-slices=4 --spot --enable-gcsfuse-csi-driver" in line
    (line,) = dry(cloud, "gke.sh", "create", *GKE, "--reservation=ours")
    assert "--num-slices=1 --reservation=ours" in line


def test_settings_come_from_the_environment_and_flags_win(cloud):
    environment = {"NAME": "a", "ZONE": "z", "TYPE": "v6e-8", "SPOT": "true", "VERSION": "mine"}
    assert dry(cloud, "tpu_vm.sh", "create", "--name=b", **environment) == [
        f"{QR} create b --accelerator-type=v6e-8 --runtime-version=mine --node-id=b --spot --zone=z"
    ]


def test_steps_can_be_combined_and_what_is_not_set_is_left_out(cloud):
    lines = dry(cloud, "tpu_vm.sh", "up", "delete", *VM, "--", "python", "-V")
    assert lines[-1] == DELETE
    assert not any("storage" in line or "/gcs" in line for line in lines)
    assert lines[6] == f"{ON_ALL} --command='bash bert_jax/launch/worker.sh start '\\'''\\'' " + (
        f"python -V' {AT}"
    )
    lines = dry(cloud, "gke.sh", "up", *GKE, "--", "python", "-V")
    assert len(lines) == 3 and "--storage" not in lines[1]
    assert r"'\''jax[tpu]'\'' && exec python -V'" in lines[1]


# Quoting: what a shell reads from the printed line is what is executed, and the words of the
# command arrive on the workers as they were given.

ODD = ["python", "a b", "it's", 'say "x"', "$HOME `x` \\", "--flag=a b", "--empty=", "", "*", "한"]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_odd_words_survive_printing_and_executing(cloud, script):
    arguments = [*(VM if script == "tpu_vm.sh" else GKE), "--", *ODD]
    (line,) = dry(cloud, script, "run", *arguments)
    assert cloud(script, "run", *arguments).returncode == 0
    (executed,) = cloud.calls()
    assert shlex.split(line) == executed
    remote = next(word for word in executed if word.startswith("--command="))
    words = shlex.split(remote.partition("=")[2])
    assert words[-len(ODD) :] == ODD


def test_a_corpus_with_a_space_is_one_folder(cloud):
    (line,) = dry(cloud, "tpu_vm.sh", "corpus", *VM, "--corpus=gs://b/my corpus")
    remote = next(word for word in shlex.split(line) if word.startswith("--command="))
    words = shlex.split(remote.partition("=")[2])
    assert words[2] == "bert_jax/corpora/my corpus"
    assert words[-2:] == ["gs://b/my corpus", "bert_jax/corpora/my corpus"]


# Errors.


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_vm.sh", [], "which step?"),
        ("tpu_vm.sh", ["fly", *VM], "unknown step 'fly'"),
        ("tpu_vm.sh", ["create", "--zone=z"], "--name=... is needed"),
        ("tpu_vm.sh", ["create", "--name=a"], "--zone=... is needed"),
        ("tpu_vm.sh", ["create", "--name=a", "--zone=z"], "--type=... is needed"),
        ("tpu_vm.sh", ["create", *VM, "--typ=v4-8"], "unknown flag --typ"),
        ("gke.sh", ["create", *GKE, "--reserved"], "unknown flag --reserved"),
        ("tpu_vm.sh", ["create", *VM, "--cluster=c"], "unknown flag --cluster"),
        ("tpu_vm.sh", ["create", "--name", "a"], "--name has no value; flags are written --name="),
        ("tpu_vm.sh", ["create", *VM, "--type=tpu7x-8"], "rented through GKE alone"),
        ("tpu_vm.sh", ["create", *VM, "--type=h100"], "--version="),
        ("tpu_vm.sh", ["create", *VM, "--slices=two"], "--slices=two is not a number"),
        ("tpu_vm.sh", ["create", *VM, "--name=My_Run"], "'My_Run' is not a name"),
        ("tpu_vm.sh", ["run", *VM], "which command?"),
        ("tpu_vm.sh", ["watch", *VM], "which command?"),
        ("tpu_vm.sh", ["run", *VM, "--", "python", "a\nb"], "line break"),
        ("tpu_vm.sh", ["run", *VM, "--", "x", "--workdir=gs://b/r"], "--bucket=NAME mounts one"),
        ("tpu_vm.sh", ["run", *VM, "--bucket=b", "--", "--c=gs://bb/r"], "not mounted"),
        ("tpu_vm.sh", ["run", *VM, "--bucket=b/runs", "--", "x"], "not the name of a bucket"),
        ("tpu_vm.sh", ["corpus", *VM, "--corpus=corpora/wiki"], "is not gs://BUCKET/FOLDER"),
        ("tpu_vm.sh", ["corpus", *VM], "--corpus=... is needed"),
        ("gke.sh", ["mount", *GKE], "--bucket=... is needed"),
        ("gke.sh", ["create", "--name=a", "--zone=z"], "--cluster=... is needed"),
        ("gke.sh", ["run", "--cluster=c", "--zone=z", "--type=v4-8", "--", "x"], "--name=..."),
        ("gke.sh", ["run", *GKE, "--corpus=gs://other/c", "--", "x"], "is not in --bucket="),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(cloud, script, arguments, message):
    result = cloud(script, *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"error: .*\n", result.stderr) and message in result.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_help_lists_every_setting(cloud, script):
    result = cloud(script, "--help")
    assert result.returncode == 0
    text = (ROOT / "launch" / script).read_text()
    names = re.search(r'^read_settings (?:\\\n  )?"([^"]*)"', text, re.M)
    for name in [*names[1].split(), "dry-run"]:
        assert f"--{name}" in result.stdout


# Restarts. `answer` plays the cloud: what the Nth look at the slices and at the workers finds.


def watch(cloud, states: list[str], workers: list[str]) -> tuple[subprocess.CompletedProcess, str]:
    """Runs `watch`; returns its result and the verbs called, without the looks."""
    folder = cloud.answer.parent
    (folder / "states").write_text("\n".join(states) + "\n")
    (folder / "workers").write_text("\n".join(workers) + "\n")
    cloud.answer.write_text(
        f"""next() {{ head -n 1 "$1"; sed -i 1d "$1"; }}
case "$*" in
  *describe*) next {folder}/states ;;
  *"worker.sh status"*) next {folder}/workers | tr ',' '\\n' ;;
esac
"""
    )
    result = cloud("tpu_vm.sh", "watch", *VM, *DATA, "--", *ENTRY, POLL="0", TMPDIR=str(folder))
    verbs = []
    for call in cloud.calls():
        remote = next((word for word in call if word.startswith("--command=")), "")
        if call[4] == "ssh" and "worker.sh start" in remote:
            verbs.append("start")
        elif call[4] in ("create", "delete", "scp"):
            verbs.append(call[4])
    return result, " ".join(verbs)


def test_a_finished_run_ends_the_watch(cloud):
    result, verbs = watch(cloud, ["ACTIVE"] * 2, ["a running,b 0", "a 0,b 0"])
    assert (result.returncode, verbs) == (0, "")


@pytest.mark.parametrize("workers", ["a 75,b 75", "a 75,b lost", "a 75,b 137", "a 0,b 75"])
def test_a_stopped_or_killed_run_is_started_again(cloud, workers):
    result, verbs = watch(cloud, ["ACTIVE"] * 2, [workers, "a 0,b 0"])
    assert (result.returncode, verbs) == (0, "start")


@pytest.mark.parametrize("lost", ["SUSPENDED", "SUSPENDING", "FAILED"])
def test_a_preempted_slice_is_made_again(cloud, lost):
    states = ["ACTIVE", lost, "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE"]
    result, verbs = watch(cloud, states, ["a running,b running", "a 0,b 0"])
    assert (result.returncode, verbs) == (0, "delete create scp start")


def test_a_slice_preempted_while_it_came_up_is_made_again(cloud):
    states = ["SUSPENDED", "SUSPENDED", "SUSPENDED", "ACTIVE", "ACTIVE"]
    result, verbs = watch(cloud, states, ["a 0,b 0"])
    assert (result.returncode, verbs) == (0, "delete create delete create scp start")


def test_what_a_lost_slice_did_to_the_others_is_no_failure(cloud):
    """The survivors' exit codes may be there before the state says that a slice is gone."""
    result, verbs = watch(cloud, ["ACTIVE", "SUSPENDED", "ACTIVE", "ACTIVE"], ["a 1", "a 0,b 0"])
    assert (result.returncode, verbs) == (0, "delete create scp start")


@pytest.mark.parametrize("code", ["1", "2", "76", "128"])
def test_a_failed_run_is_not_started_again(cloud, code):
    result, verbs = watch(cloud, ["ACTIVE"] * 3, [f"a {code},b 75"] * 2)
    assert (result.returncode, verbs) == (2, "")
    assert f"exit code {code};" in result.stderr.splitlines()[-1]


def test_waiting_stops_where_it_would_be_in_vain(cloud):
    cloud.answer.write_text("echo FAILED")
    result = cloud("tpu_vm.sh", "wait", *VM)
    assert result.returncode == 2 and "bert is FAILED" in result.stderr


# On a worker.


@pytest.fixture
def worker(tmp_path):
    """Runs worker.sh in a folder of its own, on no machine but this."""
    home = tmp_path / "bert_jax"
    (home / "launch").mkdir(parents=True)
    (home / ".venv/bin").mkdir(parents=True)
    (home / ".venv/bin/activate").write_text("export ACTIVE=yes\n")
    shutil.copy(ROOT / "launch/worker.sh", home / "launch")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("sudo", "gcsfuse"):
        (bin_folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n')
        (bin_folder / name).chmod(0o755)
    (bin_folder / "mountpoint").write_text("#!/bin/sh\nexit 1\n")
    (bin_folder / "mountpoint").chmod(0o755)
    (tmp_path / "calls").touch()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "bert_jax/launch/worker.sh", *arguments], cwd=tmp_path,
            env=os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
            text=True, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    def becomes(state: str) -> None:
        for _ in range(200):
            seen = run("status").stdout.split()[-1]
            if seen != "running":
                break
            time.sleep(0.05)
        assert seen == state

    def speaks() -> None:
        for _ in range(200):
            if (home / "run.log").exists() and (home / "run.log").read_text():
                return
            time.sleep(0.05)
        raise AssertionError("the command wrote nothing")

    run.becomes, run.speaks, run.home = becomes, speaks, home
    yield run
    if run("status").stdout.split()[-1] == "running":
        run("stop")


def test_a_worker_keeps_log_and_exit_code(worker):
    assert worker("status").stdout.split()[-1] == "lost"  # nothing was started
    command = ["bash", "-c", 'echo "$ACTIVE $1"; exit 75', "x", "two words"]
    assert worker("start", "", *command).returncode == 0
    worker.becomes("75")
    assert worker("start", "", "true").returncode == 0
    worker.becomes("0")
    assert (worker.home / "run.log").read_text() == "yes two words\n"


@pytest.mark.parametrize("by", ["stop", "shutdown"])
def test_a_run_that_gets_sigterm_saves_and_leaves_its_exit_code(worker, by):
    """A machine that shuts down sends it to every process, the shell around the run too."""
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True)"
    program += "; signal.pause()"
    worker("start", "", sys.executable, "-c", program)
    worker.speaks()
    again = worker("start", "", "true")
    assert again.returncode == 2 and "stop it first" in again.stderr
    if by == "stop":
        assert worker("stop").returncode == 0
    else:
        os.killpg(int((worker.home / "run.pid").read_text()), 15)
    worker.becomes("75")


def test_a_run_that_is_gone_without_a_word_is_lost(worker):
    worker("start", "", "bash", "-c", "echo up; sleep 60")
    worker.speaks()
    pid = int((worker.home / "run.pid").read_text())
    os.killpg(pid, 9)
    worker.becomes("lost")


def test_the_bucket_is_mounted_before_the_start(worker, tmp_path):
    assert worker("start", "my-bucket", "true").returncode == 0
    worker.becomes("0")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "sudo mkdir -p /gcs/my-bucket"
    assert calls[-1] == (
        "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "
        "my-bucket /gcs/my-bucket"
    )


# All scripts.


def test_scripts_are_clean():
    found = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(sys.executable).parent)
    )
    if found is None:
        pytest.skip("shellcheck is not installed (requirements-dev.txt)")
    scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
    result = subprocess.run(
        [found, "-x", *scripts], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stdout
