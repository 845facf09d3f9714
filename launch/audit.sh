#!/usr/bin/env bash
# Looks the pinned packages up in a database of known vulnerabilities (pip-audit, in a temporary environment), which it has to be able to
# reach. Ends with an error for a vulnerability, and for a package that could not be looked up.
#   bash launch/audit.sh                                   # both sets
#   bash launch/audit.sh --vulnerability-service osv       # arguments are passed to pip-audit
set -euo pipefail
cd "$(dirname "$0")/.."
aside=$(mktemp -d)
trap 'rm -rf "$aside"' EXIT
.venv/bin/python -m venv "$aside/tool"
"$aside/tool/bin/pip" install --quiet pip-audit==2.10.1
status=0
for set in cpu gpu; do
  # Names and versions alone; builds such as +cpu are those of the version. --strict: pip-audit otherwise finds nothing wrong with what it skips.
  sed -nE 's/^([A-Za-z0-9._-]+==[^ ;+\\]+).*/\1/p' "launch/requirements-$set.txt" > "$aside/$set.txt"
  echo "audit: $(wc -l < "$aside/$set.txt") packages of the $set set"
  "$aside/tool/bin/pip-audit" --strict --no-deps --disable-pip --progress-spinner off -r "$aside/$set.txt" "$@" || status=$?
done
exit "$status"
