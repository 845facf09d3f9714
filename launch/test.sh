#!/usr/bin/env bash
# Set-up, then all tests, in two processes side by side. Arguments go to pytest, in one: bash launch/test.sh tests/rlsys -k scores
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile
exec .venv/bin/python -m pytest "$@"
