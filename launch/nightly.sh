#!/usr/bin/env bash
# Set-up, then the long tests that launch/test.sh skips because other tests cover the same code. Arguments are passed to pytest.
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
exec .venv/bin/python -m pytest -m nightly "$@"
