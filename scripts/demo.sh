#!/usr/bin/env bash
# A first look at noded: start a head, run examples/wordcount.py on it, stop it, and see that nothing is left.
# All state is in a directory of its own, so a cluster that runs already is neither used nor touched.
# Needs `noded` and its `python` on PATH (`make demo` sees to it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for name in $(compgen -e NODED_); do unset "$name"; done
work=$(mktemp -d "${TMPDIR:-/tmp}/noded-demo.XXXXXX")
head=

# Not exported: only what we start for the demo carries the directory, so what is left can be told by it.
in_demo() { env NODED_RUN_DIR="$work/run" NODED_HOME="$work/home" "$@"; }

# Pids of all processes that were started with the demo's directory, this script's own apart.
left() {
    local file
    for file in $(grep -lsF -- "$work" /proc/[0-9]*/environ || true); do
        [[ $(<"${file%environ}stat") == *") Z "* ]] || basename "${file%/environ}"
    done 2>/dev/null
}

finish() {
    status=$?
    trap - EXIT INT TERM
    if [[ $status != 0 && -f $work/head.log ]]; then
        echo "demo: failed; the head said:" >&2
        tail -n 20 "$work/head.log" >&2
    fi
    local pids
    pids=$(left)
    # shellcheck disable=SC2086 # one argument per pid
    [[ -z $pids ]] || kill -KILL $pids 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

say noded --head
in_demo noded --head --port 0 >"$work/head.log" 2>&1 &
head=$!
for _ in $(seq 200); do
    in_demo noded status --json 2>/dev/null | grep -q '"' && ready=yes && break
    kill -0 "$head" 2>/dev/null || { echo "demo: the head ended while it started" >&2; exit 1; }
    sleep 0.05
done
[[ ${ready:-} == yes ]] || { echo "demo: the head was not ready within 200 attempts" >&2; exit 1; }
echo "the head runs as pid $head"

say python examples/wordcount.py
in_demo python examples/wordcount.py

say noded status
in_demo noded status

say noded stop
in_demo noded stop
wait "$head" || { echo "demo: the head ended with status $?" >&2; exit 1; }

pids=$(left | tr '\n' ' ')
if [[ -n $pids ]]; then
    echo "demo: still running after noded stop: $pids" >&2
    ps -o pid,ppid,stat,args -p "${pids% }" >&2 || true
    exit 1
fi
echo "stopped, and nothing is left running"
