#!/bin/sh
# Runs a compiler, as CMake's CUDA_COMPILER_LAUNCHER, and keeps what it and ptxas -v say beside the object, as
# OBJECT.ptxas: the release first. Shows all of it but ptxas's notes.
set -u
object=
for argument; do
    test "${previous-}" = -o && object=$argument
    previous=$argument
done
test -n "$object" || exec "$@"

"$1" --version | grep release >"$object.ptxas"
"$@" >>"$object.ptxas" 2>&1
status=$?
grep -v -e '^ptxas info ' -e '^ *[0-9]* bytes stack frame' -e 'Cuda compilation tools' "$object.ptxas" >&2
exit $status
