#!/bin/sh
# Puts ONNX Runtime's C++ headers, which its wheel lacks, into a folder, build/onnxruntime of this checkout if none is
# given: those of Debian's package, which is unpacked and not installed. Where this is not Debian, set
# CLADA_ONNXRUNTIME_INCLUDE to the headers of an official release.
set -eu
folder=${1:-$(dirname "$0")/../build/onnxruntime}
test -e "$folder/onnxruntime_cxx_api.h" && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
# The suite that has the package, from the mirror that this machine uses.
mirror=$(apt-get --no-release-info indextargets --format '$(REPO_URI)' 'Identifier: Packages' 2>/dev/null | grep '/debian/*$' | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/sources.list"
apt() {
    apt-get -qq -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" "$@"
}
if (cd "$work" && apt update && apt download libonnxruntime-dev && dpkg -x libonnxruntime-dev_*.deb unpacked) >/dev/null; then
    mkdir -p "$(dirname "$folder")"
    rm -rf "$folder"
    mv "$work/unpacked/usr/include/onnxruntime" "$folder"
else
    echo "error: no Debian package with ONNX Runtime's headers could be fetched; unpack a release of" \
        "github.com/microsoft/onnxruntime/releases and set CLADA_ONNXRUNTIME_INCLUDE to its include folder" >&2
    exit 1
fi
