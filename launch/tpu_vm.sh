#!/usr/bin/env bash
# A run on Cloud TPU VMs, one slice or several; launch/README.md explains each step.
#
#   launch/tpu_vm.sh up --name=bert --zone=us-west4-a --type=v5litepod-256 --spot \
#       --bucket=my-bucket --corpus=gs://my-bucket/corpora/wiki -- \
#       python -m bert_jax.main --config=configs/pretrain.py:size=base,seq=128 \
#       --config.corpus=corpora/wiki --workdir=gs://my-bucket/runs/base
#
# Steps, one or several in a call:
#   create   ask for the slices (a queued resource)
#   wait     until they are there and answer
#   install  copy this repository to every worker and make its environment
#   corpus   copy --corpus to corpora/ on every worker
#   run      start the command after -- on every worker, detached; each has its run.log
#   watch    until the run is finished; start it again when it was preempted
#   logs     follow the log of one worker
#   status   state of the slices, and of the run on every worker
#   stop     let the run save and exit
#   delete   give the slices back, which ends their cost
#   up       create wait install corpus run watch
#
# Settings, as flags or (in capitals) in the environment:
#   --name --zone     of the queued resource; needed
#   --project         default: gcloud's own
#   --type            of one slice: v4-32, v5litepod-256, v5p-128, v6e-256 ...
#   --slices          default 1
#   --spot            cheaper, and may be taken away at any time; or
#   --reserved        from your reservation; neither: on demand
#   --version         runtime version; default: the one for JAX on this type
#   --bucket          mounted as /gcs/BUCKET; gs://BUCKET/... after -- means files there
#   --corpus          gs://BUCKET/FOLDER
#   --slice --worker  whose log; default 0 and 0
#   --dry-run         print the commands, run none
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/cloud.sh

NAME=${NAME:-} ZONE=${ZONE:-} PROJECT=${PROJECT:-} TYPE=${TYPE:-} SLICES=${SLICES:-1}
SPOT=${SPOT:-false} RESERVED=${RESERVED:-false} VERSION=${VERSION:-} BUCKET=${BUCKET:-}
CORPUS=${CORPUS:-} SLICE=${SLICE:-0} WORKER=${WORKER:-0}
POLL=${POLL:-60}  # seconds
# States of a worker that call for another start: 75 (saved after SIGTERM, or the others were lost),
# killed (above 128), gone without a word. After any other it would not help.
AGAIN='75|129|1[3-9].|2..|lost'
CODE=(bert_jax benchmarks configs launch pyproject.toml requirements.txt)

tpus() {  # a command on queued resources
  local command=(gcloud compute tpus queued-resources "$@" --zone="$ZONE")
  [ -z "$PROJECT" ] || command+=(--project="$PROJECT")
  execute "${command[@]}"
}

on_workers() {
  tpus ssh "$NAME" --node=all --worker=all --command="$1"
}

state() {
  tpus describe "$NAME" --format='value(state.state)'
}

runtime_version() {  # cloud.google.com/tpu/docs/runtimes
  case $TYPE in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    tpu7x* | v7*) fail "--type=$TYPE is rented through GKE alone: launch/gke.sh" ;;
    *) fail "--type=$TYPE has no known runtime version; give it as --version=..." ;;
  esac
}

step_create() {
  local options=(--accelerator-type="$TYPE" --runtime-version="$VERSION")
  if [ "$SLICES" = 1 ]; then
    options+=(--node-id="$NAME")
  else
    options+=(--node-count="$SLICES" --node-prefix="$NAME")
  fi
  [ "$SPOT" != true ] || options+=(--spot)
  [ "$RESERVED" != true ] || options+=(--reserved)
  tpus create "$NAME" "${options[@]}"
}

step_wait() {
  local now try
  if $dry_run; then state && on_workers true && return; fi
  while now=$(state) || now="not known"; [ "$now" != ACTIVE ]; do
    case $now in
      FAILED | SUSPEND*)
        fail "$NAME is $now; gcloud compute tpus queued-resources describe says why"
        ;;
    esac
    echo "$(date +%T) $NAME is $now" >&2
    sleep "$POLL"
  done
  for try in 1 2 3; do
    on_workers true && return
    echo "not all workers answer (attempt $try)" >&2
    sleep "$POLL"
  done
  fail "not all workers of $NAME answer to ssh"
}

step_install() {
  local archive=${TMPDIR:-/tmp}/bert_jax-$NAME.tgz
  execute tar -czf "$archive" --exclude=__pycache__ "${CODE[@]}"
  tpus scp "$archive" "$NAME:bert_jax.tgz" --node=all --worker=all
  on_workers "mkdir -p bert_jax && tar -xzf bert_jax.tgz -C bert_jax && \
bash bert_jax/launch/worker.sh install '$BUCKET'"
}

step_corpus() {
  if [ -z "$CORPUS" ]; then return; fi  # one on the bucket, read where it is
  local folder
  folder=$(quote "bert_jax/corpora/${CORPUS##*/}")
  on_workers "mkdir -p $folder && gcloud storage rsync --recursive $(quote "$CORPUS") $folder"
}

step_run() {
  on_workers "bash bert_jax/launch/worker.sh start $(quote "$BUCKET" "${entry[@]}")"
}

worker_states() {
  on_workers 'bash bert_jax/launch/worker.sh status'
}

step_status() {
  state
  worker_states
}

again() {  # STATE of the slices; a process of its own, since what fails in it must end it and not us
  local steps=(wait install corpus run)
  case $1 in
    SUSPEND* | FAILED) steps=(delete create "${steps[@]}") ;;
    "") steps=(create "${steps[@]}") ;;  # deleted before, and then not made
  esac
  bash launch/tpu_vm.sh "${steps[@]}" ${flags[@]+"${flags[@]}"} -- "${entry[@]}"
}

step_watch() {
  local codes now failed=false up=true
  if $dry_run; then
    step_status
    echo "# when a slice was preempted (SUSPENDED, FAILED):"
    again SUSPENDED
    echo "# when the run has saved and asks to be started again (75), or was killed:"
    step_run
    return
  fi
  while sleep "$POLL"; do
    now=$(state) || now=""
    case $now in
      ACTIVE) ;;
      SUSPEND* | FAILED) up=false ;;
      *) if $up; then continue; fi ;;
    esac
    if ! $up; then
      if again "$now"; then up=true; else echo "$NAME did not come up; trying again" >&2; fi
      continue
    fi
    # A worker that does not answer is about to be gone, and the state will say so.
    codes=$(worker_states | sed -n -E 's/^[^ ]+ (running|lost|[0-9]+)$/\1/p' | sort -u) || continue
    if [ -z "$codes" ] || grep -qx running <<< "$codes"; then
      failed=false
    elif [ "$codes" = 0 ]; then
      echo "$NAME: the run is finished; the step delete ends the cost of the slices" >&2
      return
    elif ! grep -qvxE "0|$AGAIN" <<< "$codes"; then
      step_run || echo "not all workers could be started" >&2
    elif $failed; then
      codes=$(grep -vxE "0|$AGAIN" <<< "$codes" | head -n 1)
      fail "the run failed on $NAME with exit code $codes; the step logs shows why"
    else
      failed=true  # unless a lost slice took the others with it, and its state comes later
    fi
  done
}

step_logs() {
  tpus ssh "$NAME" --node="$SLICE" --worker="$WORKER" --command='tail -n 50 -F bert_jax/run.log'
}

step_stop() {
  on_workers 'bash bert_jax/launch/worker.sh stop'
}

step_delete() {
  tpus delete "$NAME" --force --quiet
}

read_settings "name zone project type slices spot reserved version bucket corpus slice worker" "$@"
expand_steps "create wait install corpus run watch logs status stop delete" \
  create wait install corpus run watch
require NAME ZONE
check_name "$NAME"
check_paths
if doing run watch; then require_command; fi
if [ "${steps[*]}" = corpus ]; then require CORPUS; fi
if doing create watch; then
  require TYPE
  VERSION=${VERSION:-$(runtime_version)}
fi
run_steps
