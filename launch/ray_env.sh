# Source this before `ray start` and before `ray job submit`, on every machine of the cluster:
#
#   source launch/ray_env.sh
#   ray start --head
#   ray job submit --working-dir . -- rlsys train launch/configs/quickstart.yaml
#
# It puts .venv/bin on PATH (a job runs with the PATH of the cluster's processes, and must find `rlsys` there), lets only
# holders of the cluster's token in, and sends no usage statistics. The token is made once, in ~/.ray/auth_token or in
# $RAY_AUTH_TOKEN_PATH; for further machines copy that file.
_rlsys_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
case ":$PATH:" in
    *":$_rlsys_root/.venv/bin:"*) ;;
    *) export PATH="$_rlsys_root/.venv/bin:$PATH" ;;
esac
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
_rlsys_token="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "$_rlsys_token" ]; then
    # As `ray get-auth-token --generate` does, which knows only the default place.
    mkdir -p "$(dirname "$_rlsys_token")"
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$_rlsys_token")
fi
unset _rlsys_root _rlsys_token
