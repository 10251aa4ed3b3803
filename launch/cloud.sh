# shellcheck shell=bash
# What tpu_vm.sh and gke.sh share: settings, errors, and commands that are run or just printed.
# Works in bash 3.2, so that a Mac needs nothing else.

dry_run=false
steps=()
flags=()  # the settings as they were given
entry=()  # the command after --

fail() {
  echo "error: $*" >&2
  exit 2
}

usage() {  # the comment at the head of the script
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
}

quote() {  # prints the words so that a shell reads the same words again
  local LC_ALL=C word flag line=
  for word; do
    flag=
    if [[ $word =~ ^(--[a-z-]+=)(.*)$ ]]; then
      flag=${BASH_REMATCH[1]} word=${BASH_REMATCH[2]}
    fi
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line${line:+ }$flag$word"
  done
  printf '%s\n' "$line"
}

execute() {
  if $dry_run; then quote "$@"; else "$@"; fi
}

# read_settings NAMES ARGUMENT...: sets steps, flags, entry, and a variable for each flag.
read_settings() {
  local names=" $1 " name value
  shift
  case "$*" in *$'\n'*) fail "an argument has a line break" ;; esac
  while (($#)); do
    case $1 in
      --) shift && entry=("$@") && return ;;
      --help) usage && exit ;;
      --dry-run) dry_run=true ;;
      --*)
        name=${1%%=*} name=${name#--}
        [[ $names == *" $name "* ]] || fail "unknown flag --$name (--help lists the flags)"
        case $1 in
          *=*) value=${1#*=} ;;
          --spot | --reserved) value=true ;;
          *) fail "$1 has no value; flags are written --name=value" ;;
        esac
        printf -v "$(tr '[:lower:]' '[:upper:]' <<< "$name")" %s "$value"
        ;;
      *) steps+=("$1") && shift && continue ;;
    esac
    flags+=("$1")
    shift
  done
}

require() {
  local setting
  for setting; do
    [ -n "${!setting}" ] || fail "--$(tr '[:upper:]' '[:lower:]' <<< "$setting")=... is needed"
  done
}

require_command() {
  ((${#entry[@]})) || fail "which command? -- COMMAND, at the end"
}

check_name() {  # Google Cloud and Kubernetes both accept such names
  [[ $1 =~ ^[a-z]([a-z0-9-]{0,37}[a-z0-9])?$ ]] ||
    fail "'$1' is not a name: up to 39 lower-case letters, digits and -, a letter first"
}

expand_steps() {  # KNOWN STEPS, STEP...: puts the latter in place of `up`
  ((${#steps[@]})) || fail "which step? up does them all; --help lists them"
  local known=$1 given=("${steps[@]}") step
  shift
  steps=()
  for step in "${given[@]}"; do
    if [ "$step" = up ]; then steps+=("$@"); else steps+=("$step"); fi
    [[ " up $known " == *" $step "* ]] || fail "unknown step '$step'; there are: up $known"
  done
}

doing() {  # STEP...: whether one of these is among the steps
  local step
  for step; do
    [[ " ${steps[*]} " != *" $step "* ]] || return 0
  done
  return 1
}

# Checks BUCKET, CORPUS and SLICES. gs://BUCKET/x in the command becomes /gcs/BUCKET/x, where the
# bucket is mounted: Orbax could write to gs://, but ArrayRecord and plain files cannot.
check_paths() {
  local i
  BUCKET=${BUCKET#gs://} BUCKET=${BUCKET%/} CORPUS=${CORPUS%/}
  [[ $BUCKET =~ ^[a-z0-9._-]*$ ]] || fail "--bucket=$BUCKET is not the name of a bucket"
  [[ -z $CORPUS || $CORPUS =~ ^gs://[^/]+/.+$ ]] ||
    fail "--corpus=$CORPUS is not gs://BUCKET/FOLDER"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "--slices=$SLICES is not a number of slices"
  for ((i = 0; i < ${#entry[@]}; i++)); do
    case ${entry[i]} in
      *gs://"${BUCKET:-?}" | *gs://"${BUCKET:-?}"/*) entry[i]=${entry[i]//gs:\/\///gcs/} ;;
      *gs://*) fail "${entry[i]} is in a bucket that is not mounted; --bucket=NAME mounts one" ;;
      --workdir=/*) ;;
      --workdir=*) fail "${entry[i]} is on the disk of each worker; give gs://BUCKET/FOLDER" ;;
    esac
  done
}

run_steps() {  # calls step_NAME for each of the steps
  local step
  for step in "${steps[@]}"; do
    $dry_run || echo "== $step" >&2
    "step_$step"
  done
}
