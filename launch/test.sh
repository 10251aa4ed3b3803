#!/usr/bin/env bash
# Lint, types and tests, in an environment of its own making.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh requirements-dev.txt
ruff check .
ruff format --check .
mypy
# Two at a time: most of the time goes to compiling small programs on one core each.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 "$@"
