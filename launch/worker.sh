#!/usr/bin/env bash
# What tpu_vm.sh does on each worker of a slice.
#
#   worker.sh install BUCKET           Python, the libraries, and gcsfuse if there is a bucket ('')
#   worker.sh start BUCKET COMMAND...  mounts the bucket; starts the command, detached
#   worker.sh status                   host, and: running, lost (gone without a word) or exit code
#   worker.sh stop                     SIGTERM: the run saves and exits
set -euo pipefail
cd "$(dirname "$0")/.."

install() {
  # The system's Python is older than ours.
  python3 -m pip install --quiet --user uv
  local uv=$HOME/.local/bin/uv
  "$uv" venv --quiet --allow-existing --python 3.12 .venv
  "$uv" pip install --quiet --python .venv/bin/python -r requirements.txt 'jax[tpu]'
  [ -z "$1" ] || command -v gcsfuse > /dev/null || install_gcsfuse
}

install_gcsfuse() {
  local google=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsS "$google/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] $google gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  # A fresh machine updates itself and holds the lock for minutes.
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq install gcsfuse
}

mount_bucket() {
  if [ -z "$1" ] || mountpoint -q "/gcs/$1"; then return; fi
  sudo mkdir -p "/gcs/$1"
  sudo chown "$(id -un)" "/gcs/$1"
  # Every worker sees at once what another one has written: nothing is remembered.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$1" "/gcs/$1"
}

state() {
  if [ -e run.exit ]; then
    cat run.exit
  elif [ -e run.pid ] && kill -0 "$(cat run.pid)" 2> /dev/null; then
    echo running
  else
    echo lost
  fi
}

start() {
  if [ "$(state)" = running ]; then
    echo "error: $(hostname): a run is going on; stop it first" >&2
    exit 2
  fi
  mount_bucket "$1"
  shift
  rm -f run.exit
  # SIGTERM at shutdown reaches this shell too, which still has to write the exit code.
  # shellcheck disable=SC2016
  setsid bash -c 'source .venv/bin/activate; trap : TERM; "$@"; echo $? > run.exit' run "$@" \
    < /dev/null >> run.log 2>&1 &
  echo $! > run.pid
}

case $1 in
  install | start) "$@" ;;
  status) echo "$(hostname) $(state)" ;;
  stop) pkill -TERM -P "$(cat run.pid)" ;;
  *) echo "error: unknown command '$1'" >&2 && exit 2 ;;
esac
