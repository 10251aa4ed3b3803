"""Restarts on TPUs: what `watch` does about slices and runs that end.

`answer` plays the cloud: what the Nth look at the slices and at the workers finds.
"""

import subprocess

import pytest
from stub_cloud import DATA, ENTRY, VM


def watch(
    cloud, states: list[str], workers: list[str], fails: str = ""
) -> tuple[subprocess.CompletedProcess, str]:
    """Runs `watch`; returns its result and the verbs called, without the looks.

    fails: a verb that the cloud refuses once.
    """
    folder = cloud.answer.parent
    (folder / "states").write_text("\n".join(states) + "\n")
    (folder / "workers").write_text("\n".join(workers) + "\n")
    cloud.answer.write_text(
        f"""next() {{ head -n 1 "$1"; sed -i 1d "$1"; }}
case "$*" in
  *describe*) next {folder}/states ;;
  *"worker.sh status"*) next {folder}/workers | tr ',' '\\n' ;;
  *" {fails or "-"} "*) if mkdir {folder}/failed 2> /dev/null; then exit 1; fi ;;
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


def test_a_slice_that_could_not_be_made_is_asked_for_again(cloud):
    """It is deleted by then, and has no state."""
    states = ["SUSPENDED", "", "ACTIVE", "ACTIVE"]
    result, verbs = watch(cloud, states, ["a 0,b 0"], fails="create")
    assert (result.returncode, verbs) == (0, "delete create create scp start")


def test_what_could_not_be_installed_is_installed_again(cloud):
    states = ["SUSPENDED", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE"]
    result, verbs = watch(cloud, states, ["a 0,b 0"], fails="scp")
    assert (result.returncode, verbs) == (0, "delete create scp scp start")


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
