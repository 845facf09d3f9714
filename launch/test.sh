#!/usr/bin/env bash
# Set-up, then all tests. Arguments go to pytest: bash launch/test.sh tests/rlsys -k scores
# Two processes side by side, each on a core of its own: bash launch/test.sh --numprocesses 2 --dist loadfile
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
exec .venv/bin/python -m pytest "$@"
