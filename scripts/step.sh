#!/bin/sh
# Runs a command that says nothing for minutes, or too much: prints what it is for, every five seconds how long it has
# taken and its last line, and all that it said only if it fails.
#
#     scripts/step.sh WHAT COMMAND...
set -u
what=$1
shift
log=$(mktemp)
"$@" >"$log" 2>&1 &
process=$!
trap 'rm -f "$log"' EXIT
# A process in the background does not hear an interrupt by itself.
trap 'kill $process; exit 130' INT TERM
echo "$what"
seconds=0
while kill -0 $process 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $((seconds % 5)) -eq 0 ]; then
        echo "  $what, $seconds s: $(tail -n 1 "$log" | tr '\r\t' '  ' | cut -c 1-100)"
    fi
done
wait $process
status=$?
test $status -eq 0 || cat "$log" >&2
exit $status
