# Sourced after lib.sh: the one server that `make up` starts and `make down` stops.

pid_file=$data_dir/server.pid
ready_file=$data_dir/server.ready
server_log=$log_dir/server.log
ready_within=120
stop_within=60

# start_time PID: when the process started, in ticks; tells it from a later one of the same number.
start_time() {
    # The program's name may hold spaces and parentheses; the fields are counted behind its last one.
    sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d ' ' -f 20
}

# has_ended PID: also when its parent has not noticed yet (a zombie).
has_ended() {
    case $(sed 's/.*) //' "/proc/$1/stat" 2> /dev/null) in
    "" | Z* | X*) return 0 ;;
    *) return 1 ;;
    esac
}

# server_pid: the server's process id, if it is still the process we started.
server_pid() {
    local pid started
    [ -r "$pid_file" ] && read -r pid started < "$pid_file" || return 1
    [ "$(start_time "$pid")" = "$started" ] && ! has_ended "$pid" || return 1
    printf '%s\n' "$pid"
}

server_runs() {
    server_pid > /dev/null
}

# vms_run: whether a VM of this data directory runs, whoever looks after it.
vms_run() {
    # The names come by stdin: grep must not find itself.
    ls "$data_dir/vms" 2> /dev/null | tr -d - | sed 's/^/skerry-vm-/' |
        grep --quiet --no-messages --text --fixed-strings --file=- /proc/[0-9]*/cmdline
}

server_url() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"])' "$ready_file"
}

# start_server [ARGUMENT...]: returns when it is ready.
start_server() {
    local pid before deadline=$((SECONDS + ready_within))
    mkdir -p "$log_dir"
    rm -f "$ready_file"
    touch "$server_log"
    before=$(wc -c < "$server_log")
    # Its own session: it outlives this script and the terminal's Ctrl-C.
    setsid "$skerry" serve --data-dir "$data_dir" --on-shutdown stop "$@" \
        > "$ready_file" 2>> "$server_log" < /dev/null &
    pid=$!
    echo "$pid $(start_time "$pid")" > "$pid_file"
    until [ -s "$ready_file" ]; do
        if ! server_runs; then
            echo "the server ended; it said:"
            tail -c "+$((before + 1))" "$server_log" | tail -n 20
            return 1
        fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "the server was not ready within $ready_within s; see $server_log"
            return 1
        fi
        sleep 0.1
    done
    cat "$ready_file"
}

# stop_server: returns when it has ended. A server that had to be killed keeps its pid file, which says
# that there may be something to clear.
stop_server() {
    local pid deadline=$((SECONDS + stop_within))
    pid=$(server_pid) || return 0
    kill -TERM "$pid"
    while server_runs; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "the server did not end within $stop_within s and is killed"
            kill -KILL "$pid"
            return 1
        fi
        sleep 0.1
    done
    rm -f "$pid_file" "$ready_file"
}
