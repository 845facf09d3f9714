#!/usr/bin/env bash
# Set-up, then all tests except those of launch/nightly.sh. Arguments are passed to pytest: bash launch/test.sh tests/rlsys -k scores
# Without arguments, tests without engines run in several processes, then the others in one, whose engines and learners use all cores.
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
[ $# -eq 0 ] || exec .venv/bin/python -m pytest "$@"
trap 'exit 130' INT
status=0
.venv/bin/python -m pytest --numprocesses auto --dist worksteal tests --ignore tests/actors --ignore tests/faults --ignore tests/launch || status=$?
.venv/bin/python -m pytest tests/actors tests/faults tests/launch || status=$?
exit "$status"
