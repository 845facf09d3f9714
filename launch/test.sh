#!/usr/bin/env bash
# Set-up, then all tests. Arguments go to pytest: bash launch/test.sh tests/rlsys -k scores
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
exec .venv/bin/python -m pytest "$@"
