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

# why_failed LOG: what the failed tests in a log said first, without the logs and traces behind it.
why_failed() {
    grep -A 5 -E '^---- .* ----$|^error(\[E[0-9]+\])?: ' "$1" | cut -c 1-300 | tail -n 14 | sed 's/^/    /' >&2 || true
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
        why_failed "$log"
        return "$status"
    fi
    say "==> $name: $((SECONDS - began)) s"
}
