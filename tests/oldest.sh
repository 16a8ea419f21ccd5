#!/usr/bin/env bash
# The tests against the lowest versions that pyproject.toml allows, in an environment of their own.
# usage: tests/oldest.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/uv ] || { python3 -m venv .venv && .venv/bin/pip install --quiet uv; }
env=$(mktemp -d)
trap 'rm -rf "$env"' EXIT
.venv/bin/uv venv --quiet "$env/venv"
.venv/bin/uv pip install --quiet --python "$env/venv/bin/python" --resolution lowest-direct \
    --group test -e '.[all]'
# Old releases meet each other with deprecations of their own.
"$env/venv/bin/python" -m pytest -W ignore::DeprecationWarning "$@"
