# Sourced by the other scripts: where things are, and steps with their times.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data_dir=var
log_dir=$data_dir/log
skerry=target/release/skerry
agent_target=x86_64-unknown-linux-gnu

# say TEXT: one line of progress on stderr, so that stdout stays for results.
say() {
    printf '%s\n' "$*" >&2
}

# step NAME COMMAND...: runs the command, shows its output indented, and says how long it took. The
# whole output is kept in var/log.
step() {
    local name=$1 began=$SECONDS log status
    shift
    mkdir -p "$log_dir"
    log=$log_dir/${name// /-}.log
    say "==> $name"
    status=0
    # Line by line, so that a long step is seen to move.
    "$@" 2>&1 | tee "$log" | sed -u 's/^/    /' >&2 || status=$?
    if [ "$status" -ne 0 ]; then
        say "==> $name FAILED after $((SECONDS - began)) s; its output is in $log"
        return "$status"
    fi
    say "==> $name: $((SECONDS - began)) s"
}
