# Source this before `ray start` and before `ray job submit`, on every machine of the cluster:
#
#   source launch/ray_env.sh
#   ray start --head
#   rlsys submit launch/configs/quickstart.yaml --address http://localhost:8265 \
#       run.dir=/shared/runs/first model.path=/shared/models/smollm2-135m-instruct
#
# It adds .venv/bin to PATH (a job must find `rlsys` on the PATH of the cluster's processes), enables token authentication,
# disables usage statistics, and sets what matters between machines: how soon a lost one is noticed, and how long Ray waits for an
# object. The token is created once, in ~/.ray/auth_token or $RAY_AUTH_TOKEN_PATH; copy that file to the other machines.
_rlsys_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
case ":$PATH:" in
    *":$_rlsys_root/.venv/bin:"*) ;;
    *) export PATH="$_rlsys_root/.venv/bin:$PATH" ;;
esac
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# For the head: a machine that misses three checks of its health, each within 5 s, is declared dead; Ray's own values are five and 10 s.
export RAY_health_check_timeout_ms="${RAY_health_check_timeout_ms:-5000}"
export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-3}"
# Ray asks again for an object that has not arrived after 10 s, by default: too soon for buckets of weights over a slow wire.
export RAY_object_manager_pull_timeout_ms="${RAY_object_manager_pull_timeout_ms:-120000}"
_rlsys_token="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "$_rlsys_token" ]; then
    # Like `ray get-auth-token --generate`, which supports only the default path.
    mkdir -p "$(dirname "$_rlsys_token")"
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$_rlsys_token")
fi
unset _rlsys_root _rlsys_token
