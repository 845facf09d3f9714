#!/usr/bin/env bash
# Fuzzing guided by coverage (atheris, in a temporary environment): damages the valid inputs of tests/fuzz_targets.py and follows what reaches
# new code. A finding is an error that would be a traceback, a message that does not name the file, a crash, or more than 60 s for one input.
#   bash launch/fuzz.sh                    # all targets, SECONDS_EACH (120) each
#   bash launch/fuzz.sh rows.csv 600       # one of them, for 600 seconds
# Inputs that were found are kept in ${RLSYS_FUZZ:-/tmp/rlsys-fuzz}/TARGET; the next start begins from them.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
export PYTHONPATH=$PWD:$PWD/tests OMP_NUM_THREADS=1
seconds=${2:-${SECONDS_EACH:-120}}
place=${RLSYS_FUZZ:-/tmp/rlsys-fuzz}
aside=$(mktemp -d)
trap 'rm -rf "$aside"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$aside" atheris==3.0.0  # not a dependency of the project
cat > "$aside/fuzz_one.py" <<'END'
"""fuzz_one.py TARGET CORPUS [libFuzzer's options]"""
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rlsys", "launch"]):
    import fuzz_targets

name, corpus = sys.argv[1:3]
target, folder = fuzz_targets.TARGETS[name], Path(tempfile.mkdtemp(dir=Path(__file__).parent))
target.around(folder)
for number, seed in enumerate(target.seeds):
    (Path(corpus) / f"valid-{number}").write_bytes(seed)
atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: fuzz_targets.run(target, data, folder))
atheris.Fuzz()
END
export PYTHONPATH=$aside:$PYTHONPATH
if [ $# -gt 0 ]; then targets=("$1"); else mapfile -t targets < <("$python" -c 'import fuzz_targets; print(*fuzz_targets.TARGETS, sep="\n")'); fi
status=0
for target in "${targets[@]}"; do
  corpus=$place/$target
  mkdir -p "$corpus/inputs"
  if "$python" "$aside/fuzz_one.py" "$target" "$corpus/inputs" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=8192 -print_final_stats=1 \
      -artifact_prefix="$corpus/" > "$aside/log" 2>&1; then
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$aside/log") executions, nothing found"
  else
    grep -vE '^(#|INFO|stat::)' "$aside/log" | tail -30
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$aside/log") executions, FOUND: $(ls -t "$corpus" | grep -v inputs | head -1) in $corpus"
    status=1
  fi
done
exit "$status"
