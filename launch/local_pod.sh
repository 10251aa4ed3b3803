#!/usr/bin/env bash
# One machine as a small pod: PROCESSES real processes, each with DEVICES_EACH CPU devices.
#
#   bash launch/local_pod.sh PROCESSES DEVICES_EACH -- python -m bert_jax.main --config=...
#
# When a process was asked to stop (SIGTERM), or is lost, the others save or stop too, and all are
# started again, as a pod's launcher would. A SIGTERM to this script is for all, and final.
set -euo pipefail
if [[ $# -lt 4 || ! $1 =~ ^[1-9][0-9]*$ || ! $2 =~ ^[1-9][0-9]*$ || $3 != -- ]]; then
  echo "usage: bash launch/local_pod.sh PROCESSES DEVICES_EACH -- COMMAND..." >&2
  exit 2
fi
processes=$1 devices=$2
shift 3
restart_code=75 # common/errors.py

ended=
pids=()
trap 'ended=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
}

start() {
  local port
  port=$(free_port)
  pids=()
  for ((i = 0; i < processes; i++)); do
    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices JAX_COORDINATOR_ADDRESS=localhost:$port \
      JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$i "$@" &
    pids+=($!)
  done
}

# Waits for all; the code that says most: a failure's, else RESTART_CODE, else 0.
finish() {
  local code result=0
  for i in "${!pids[@]}"; do
    code=0
    wait "${pids[i]}" || code=$?
    while kill -0 "${pids[i]}" 2>/dev/null; do # a trap cut the wait short
      code=0
      wait "${pids[i]}" || code=$?
    done
    ((code == 0)) || echo "local_pod: process $i (pid ${pids[i]}) ended with code $code" >&2
    ((code != 134)) || echo "local_pod: JAX ended it, which it does when process 0 is gone" >&2
    ((code <= 128)) || code=$restart_code # killed
    if ((code != 0 && (result == 0 || result == restart_code))); then result=$code; fi
  done
  return "$result"
}

while true; do
  start "$@"
  code=0
  finish || code=$?
  if ((code != restart_code)) || [[ -n $ended ]]; then exit "$code"; fi
  echo "local_pod: starting again" >&2
done
