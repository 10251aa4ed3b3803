"""Launching on TPUs: the exact commands of each step, quoting, and mistakes.

Nothing here reaches a cloud: `--dry-run` runs nothing, and elsewhere gcloud is a stub.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stub_cloud import DATA, ENTRY, ROOT, VM

GKE = ["--name=bert", "--cluster=tpus", "--zone=us-west4-a", "--type=v5litepod-256"]
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
        ("tpu_vm.sh", ["create", *VM, "--", "x", "--workdir=runs/a"], "the disk of each worker"),
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
