#!/usr/bin/env bash
# Set-up, then the tests that launch/test.sh leaves out, as they are long and repeat what others test. Arguments go to pytest.
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
exec .venv/bin/python -m pytest -m nightly "$@"
