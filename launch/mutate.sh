#!/usr/bin/env bash
# Mutation testing: mutates one operator or number of a pure module at a time, and counts the mutants that its fast tests detect.
# Runs in a copy, in one process, at most SECONDS_EACH (600) per module; mutants are tried in random order, so those tried are a sample.
#   bash launch/mutate.sh                                      # all modules below
#   SECONDS_EACH=120 bash launch/mutate.sh rlsys/algorithms/rejection.py  # one of them
set -euo pipefail
cd "$(dirname "$0")/.."
tests_of() {
  case $1 in
    rlsys/rewards/extraction.py) echo tests/rlsys/rewards/test_extraction.py ;;
    rlsys/rewards/rules.py) echo tests/rlsys/rewards/test_rules.py ;;
    rlsys/rewards/thoughts.py) echo tests/rlsys/rewards/test_thoughts.py tests/rlsys/rewards/test_extraction.py tests/rlsys/prompts/test_chat.py ;;
    rlsys/algorithms/grpo.py) echo tests/rlsys/algorithms/test_grpo.py ;;
    rlsys/algorithms/rejection.py) echo tests/rlsys/algorithms/test_rejection.py ;;
    rlsys/judging/voting/adaptive.py) echo tests/rlsys/judging/test_voting_adaptive.py ;;
    rlsys/judging/voting/table.py) echo tests/rlsys/judging/test_voting_table.py ;;
    rlsys/judging/voting/verdict.py) echo tests/rlsys/judging/test_voting_verdict.py ;;
    rlsys/judging/voting/samples.py | rlsys/judging/voting/strategies.py | rlsys/judging/voting/strategy.py) echo tests/rlsys/judging/test_voting.py tests/rlsys/judging/test_voting_strategy.py ;;
    rlsys/evaluation/statistics.py) echo tests/rlsys/evaluation/test_statistics.py ;;
    rlsys/evaluation/calibration.py) echo tests/rlsys/evaluation/test_calibration.py ;;
    rlsys/models/packing.py) echo tests/rlsys/models/test_packing.py ;;
    *) echo "$1: no fast tests are listed for it in launch/mutate.sh" >&2; return 1 ;;
  esac
}
all=(rlsys/rewards/{extraction,rules,thoughts}.py rlsys/algorithms/grpo.py rlsys/algorithms/rejection.py rlsys/judging/voting/{adaptive,samples,strategies,strategy,table,verdict}.py
  rlsys/evaluation/statistics.py rlsys/evaluation/calibration.py rlsys/models/packing.py)
[ $# -gt 0 ] || set -- "${all[@]}"

python=$PWD/.venv/bin/python
aside=$(mktemp -d)
trap 'rm -rf "$aside"' EXIT
"$python" -m venv "$aside/tool"  # a separate environment: not a dependency of the project
"$aside/tool/bin/pip" install --quiet cosmic-ray==8.7.0
mkdir "$aside/copy"
git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$aside/copy"
cd "$aside/copy"
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1

for module in "$@"; do
  tests=$(tests_of "$module")
  command="$python -m pytest -q -x -p no:cacheprovider --hypothesis-profile=mutation $tests"
  $command > "$aside/log" 2>&1 || { tail -20 "$aside/log"; echo "$module: its tests fail without mutations."; exit 1; }
  cat > "$aside/config.toml" <<END
[cosmic-ray]
module-path = "$module"
timeout = 120.0
excluded-modules = []
test-command = "$command"
[cosmic-ray.distributor]
name = "local"
END
  session=$aside/$(basename "$module").sqlite
  "$aside/tool/bin/cosmic-ray" init "$aside/config.toml" "$session"
  cp "$module" "$aside/original.py"
  # Not tried: annotations, which are never evaluated; numbers inside messages, whose wording tests match by pattern; `is` for `==`,
  # which is the same for the small numbers and constants compared here.
  "$python" - "$module" "$session" <<'END'
import ast, sqlite3, sys
spans = []
for node in ast.walk(ast.parse(open(sys.argv[1]).read())):
    for found in (getattr(node, "annotation", None), getattr(node, "returns", None), node if isinstance(node, ast.JoinedStr) else None):
        if found is not None:
            spans.append(((found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)))
with sqlite3.connect(sys.argv[2]) as db:
    specs = db.execute("select job_id, start_pos_row, start_pos_col, operator_name from mutation_specs").fetchall()
    for job, line, column, operator in specs:
        if any(start <= (line, column) <= end for start, end in spans) or operator.endswith(("_Is", "_IsNot")):
            db.execute("delete from mutation_specs where job_id = ?", (job,))
            db.execute("delete from work_items where job_id = ?", (job,))
END
  timeout "${SECONDS_EACH:-600}" "$aside/tool/bin/cosmic-ray" exec "$aside/config.toml" "$session" || true
  cp "$aside/original.py" "$module"  # the time limit may leave a mutant in place
  "$python" - "$module" "$session" <<'END'
import sqlite3, sys
db = sqlite3.connect(sys.argv[2])
counts = dict(db.execute("select test_outcome, count(*) from work_results where worker_outcome = 'NORMAL' group by test_outcome"))
whole, tried = db.execute("select count(*) from work_items").fetchone()[0], sum(counts.values())
for (diff,) in db.execute("select diff from work_results where test_outcome = 'SURVIVED'"):
    print("\n".join(line for line in diff.splitlines() if line[:1] in "+-@" and line[:3] not in ("+++", "---")))
print(f"{sys.argv[1]}: {counts.get('KILLED', 0)} of {tried} mutants detected; {whole} in total")
END
done
