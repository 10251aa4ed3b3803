#!/usr/bin/env bash
# A run on TPUs in Google Kubernetes Engine, through XPK; launch/README.md explains each step.
#
#   launch/gke.sh up --name=bert --cluster=tpus --zone=us-west4-a --type=v5litepod-256 --spot \
#       --bucket=my-bucket --corpus=gs://my-bucket/corpora/wiki -- \
#       python -m bert_jax.main --config=configs/pretrain.py:size=base,seq=128 \
#       --config.corpus=corpora/wiki --workdir=gs://my-bucket/runs/base
#
# Steps, one or several in a call:
#   create   make the cluster with its slices
#   mount    attach the bucket to the cluster
#   run      start the command after -- on every worker, in a container with this repository;
#            the cluster itself starts it again when it was preempted
#   watch    until the run is finished
#   logs     follow the log of one worker
#   status   state of the run
#   stop     delete the run; it saves first
#   delete   delete the cluster, which ends its cost
#   up       create mount run watch
#
# Settings, as flags or (in capitals) in the environment:
#   --name            of the run
#   --cluster --zone  needed
#   --project         default: gcloud's own
#   --type            of one slice: v4-32, v5litepod-256, v5p-128, v6e-256, tpu7x-4x4x4 ...
#   --slices          default 1
#   --spot            cheaper, and may be taken away at any time; or
#   --reservation     the name of yours; neither: on demand
#   --image           container to start from; default python:3.12
#   --bucket          mounted as /gcs/BUCKET; gs://BUCKET/... after -- means files there
#   --corpus          gs://BUCKET/FOLDER; copied to corpora/ on every worker
#   --slice --worker  whose log; default 0 and 0
#   --dry-run         print the commands, run none
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/cloud.sh

NAME=${NAME:-} CLUSTER=${CLUSTER:-} ZONE=${ZONE:-} PROJECT=${PROJECT:-} TYPE=${TYPE:-}
SLICES=${SLICES:-1} SPOT=${SPOT:-false} RESERVATION=${RESERVATION:-} IMAGE=${IMAGE:-python:3.12}
BUCKET=${BUCKET:-} CORPUS=${CORPUS:-} SLICE=${SLICE:-0} WORKER=${WORKER:-0}

on_cluster() {  # an xpk command
  local command=(xpk "$@" --cluster="$CLUSTER" --zone="$ZONE")
  [ -z "$PROJECT" ] || command+=(--project="$PROJECT")
  execute "${command[@]}"
}

step_create() {
  local capacity=--on-demand
  [ -z "$RESERVATION" ] || capacity=--reservation=$RESERVATION
  [ "$SPOT" != true ] || capacity=--spot
  on_cluster cluster create --tpu-type="$TYPE" --num-slices="$SLICES" "$capacity" \
    --enable-gcsfuse-csi-driver
}

step_mount() {
  if [ -z "$BUCKET" ]; then return; fi
  # Every worker sees at once what another one has written: nothing is remembered.
  on_cluster storage attach "$BUCKET" --type=gcsfuse --bucket="$BUCKET" \
    --mount-point="/gcs/$BUCKET" --readonly=false --size=1 --auto-mount=false \
    --no-prefetch-metadata \
    --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
}

step_run() {
  local start="pip install --quiet -r requirements.txt 'jax[tpu]'" from options=()
  if [ -n "$CORPUS" ]; then
    from=/gcs/${CORPUS#gs://}
    start+=" && mkdir -p corpora && cp -r $(quote "$from") corpora/"
  fi
  # exec: SIGTERM must reach the run, not a shell around it.
  start+=" && exec $(quote "${entry[@]}")"
  options=(--workload="$NAME" --tpu-type="$TYPE" --num-slices="$SLICES" --command="$start")
  options+=(--base-docker-image="$IMAGE" --script-dir=.)
  # 75: saved after SIGTERM. XPK adds those of killed processes; any other code ends the run.
  options+=(--max-restarts=1000 --restart-on-exit-codes=75 --termination-grace-period-seconds=300)
  [ -z "$BUCKET" ] || options+=(--storage="$BUCKET")
  on_cluster workload create "${options[@]}"
}

step_watch() {
  on_cluster workload list --wait-for-job-completion="$NAME"
}

step_status() {
  on_cluster workload list --filter-by-job="$NAME"
}

step_logs() {
  local credentials=(gcloud container clusters get-credentials "$CLUSTER" --location="${ZONE%-*}")
  [ -z "$PROJECT" ] || credentials+=(--project="$PROJECT")
  execute "${credentials[@]}"
  local jobset=jobset.sigs.k8s.io
  execute kubectl logs --follow --tail=50 --selector="$jobset/jobset-name=$NAME,\
$jobset/job-index=$SLICE,batch.kubernetes.io/job-completion-index=$WORKER"
}

step_stop() {
  on_cluster workload delete --workload="$NAME" --force
}

step_delete() {
  on_cluster cluster delete --force
}

read_settings \
  "name cluster zone project type slices spot reservation image bucket corpus slice worker" "$@"
expand_steps "create mount run watch logs status stop delete" create mount run watch
require CLUSTER ZONE
check_name "$CLUSTER"
check_paths
if doing create run; then require TYPE; fi
if [ "${steps[*]}" = mount ]; then require BUCKET; fi
if doing run; then
  require_command
  if [[ -n $CORPUS && $CORPUS != gs://$BUCKET/* ]]; then
    fail "--corpus=$CORPUS is not in --bucket=$BUCKET, which is what the cluster mounts"
  fi
fi
if doing run watch logs status stop; then
  require NAME
  check_name "$NAME"
fi
run_steps
