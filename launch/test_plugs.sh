#!/usr/bin/env bash
# Tests each plug of rlsys/integrations/ through the real package, in an environment of its own that is deleted afterwards, against a service
# of this machine; prints a table with versions. The pins of these packages conflict with each other's, so this is not part of
# launch/test.sh. Needs launch/setup.sh before, the package index, and Python 3.11 and 3.12.
#
#   bash launch/test_plugs.sh               all of them, about 3 GB and ten minutes
#   bash launch/test_plugs.sh trl verl      some of them
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(mktemp -d)"
service=""
trap '[ -z "$service" ] || kill "$service" 2> /dev/null || true; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

links="${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2> /dev/null || true)}"
sources=()
for link in $links; do sources+=(--find-links "$link"); done
torch="$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' launch/requirements-cpu.txt)"
ls ${links#file://}/torch-*-cp311-*.whl > /dev/null 2>&1 || sources+=(--torch-backend cpu)

plug() {  # plug NAME PYTHON PACKAGE [MORE_PACKAGES ...]: prints a row of the table; whatever else is said goes to NAME.log
    local name="$1" python="$2" package="$3" result
    local log="$folder/$name.log" bin="$folder/$name/bin"
    {
        .venv/bin/uv venv --quiet --python "$python" "$folder/$name" \
            && VIRTUAL_ENV="$folder/$name" .venv/bin/uv pip install --quiet "${sources[@]}" httpx "pydantic>=2.14" "${@:4}" \
            && VIRTUAL_ENV="$folder/$name" .venv/bin/uv pip install --quiet "${sources[@]}" $package
    } > "$log" 2>&1 && installed=yes || installed=no
    if [ "$installed" = no ]; then
        result="not installed"
    elif PYTHONPATH="$PWD" timeout 600 "$bin/python" "tests/plugs/check_$name.py" "$folder" >> "$log" 2>&1; then
        result="$(tail -n 1 "$log")"
    else
        result="FAILED"
    fi
    case "$result" in
        FAILED | "not installed") failed=1; echo "--- $name"; tail -n 30 "$log" ;;
    esac >&2
    printf '| %s | %s | %s |\n' "${package##* }" "$("$bin/python" -c 'import platform; print(platform.python_version())' 2> /dev/null)" "$result"
    rm -rf "${folder:?}/$name"
}

plugs() {
    for name in "$@"; do
        case "$name" in
            trl) plug trl 3.11 trl==1.16.0 "$torch" ;;
            verl) plug verl 3.11 verl==0.9.1 "$torch" ;;
            # flash-attn, which it requires, has no wheels and compiles with CUDA only.
            openrlhf) plug openrlhf 3.11 "--no-deps openrlhf==0.11.2" "$torch" transformers==5.15.0 aiohttp pylatexenc ;;
            verifiers) plug verifiers 3.11 verifiers==0.4.0 transformers jinja2 pyarrow pyyaml ;;
            nemo_gym) plug nemo_gym 3.12 nemo-gym==0.4.0 ;;
            *) echo "$name: expected trl, verl, openrlhf, verifiers or nemo_gym." >&2; exit 2 ;;
        esac
    done
}

failed=0
mkfifo "$folder/running"
PYTHONPATH="$PWD:$PWD/tests" .venv/bin/python tests/plugs/service.py "$folder" < "$folder/running" > "$folder/service.log" 2>&1 &
service=$!
exec 9> "$folder/running"  # the service ends when this end of the pipe does, however this script ends
for _ in $(seq 240); do [ -e "$folder/url" ] || { kill -0 "$service" && sleep 0.5; }; done
[ -e "$folder/url" ] || { cat "$folder/service.log"; exit 1; }

printf '| package | Python | tested |\n|---|---|---|\n'
if [ $# -gt 0 ]; then plugs "$@"; else plugs trl verl openrlhf verifiers nemo_gym; fi
exit "$failed"
