#!/usr/bin/env bash
# Set-up, then the tests, but for those that launch/nightly.sh runs. Arguments go to one pytest: bash launch/test.sh tests/rlsys -k scores
# Without any, what starts no engine is tested in several processes; then the rest in one, whose engines and learners take all cores.
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
[ $# -eq 0 ] || exec .venv/bin/python -m pytest "$@"
trap 'exit 130' INT
status=0
.venv/bin/python -m pytest --numprocesses auto --dist worksteal tests --ignore tests/actors --ignore tests/launch || status=$?
.venv/bin/python -m pytest tests/actors tests/launch || status=$?
exit "$status"
