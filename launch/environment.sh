# shellcheck shell=bash
# Makes .venv with the given requirements file, if that is not done yet, and activates it.
# Sourced by the other scripts from the repository's root: source launch/environment.sh FILE
requirements=$1
if [ ! -f .venv/bin/activate ]; then  # the last thing that venv writes
  for candidate in python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$candidate" -m venv --clear .venv
      break
    fi
  done
  [ -f .venv/bin/activate ] || { echo "error: Python 3.11 or later (with venv) is needed" >&2; exit 2; }
fi
# shellcheck disable=SC1091  # made above
source .venv/bin/activate
installed=.venv/installed-$(basename "$requirements")
if ! cat requirements.txt "$requirements" | cmp -s - "$installed"; then
  echo "Installing $requirements into .venv ..."
  python -m pip install --quiet --disable-pip-version-check -r "$requirements"
  cat requirements.txt "$requirements" > "$installed"
fi
