#!/usr/bin/env bash
# Lint, types and tests, in an environment of its own making.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh requirements-dev.txt
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
