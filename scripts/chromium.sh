#!/bin/sh
# Puts a headless Chromium into a folder, for the tests that look at pages: Debian's package, with those it needs that
# this machine lacks, unpacked and not installed. FOLDER/chromium starts it. The version is the one that this release
# of Debian has: its mirrors keep only the latest.
set -eu
folder=$1
test -x "$folder/chromium" && exit 0

mkdir -p "$(dirname "$folder")"
# Beside the folder, so that it can be moved into place in one go.
work=$(mktemp -d "$(dirname "$folder")/.chromium-XXXXXX")
trap 'rm -rf "$work"' EXIT
work=$(cd "$work" && pwd)
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/unpacked"
# This machine's release, from the mirror that it uses.
mirror=$(apt-get --no-release-info indextargets --format '$(REPO_URI)' 'Identifier: Packages' 2>/dev/null | grep '/debian/*$' | head -n 1)
release=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME-}" || true)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$work/sources.list"
apt() {
    apt-get -qq -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Debug::NoLocking=true "$@"
}
fetch() {
    apt update && apt install --download-only --yes --no-install-recommends chromium-headless-shell fonts-liberation &&
        for package in "$work"/cache/archives/*.deb; do dpkg -x "$package" "$work/unpacked"; done
}
if ! fetch >"$work/log" 2>&1; then
    echo "warning: no Chromium was fetched: $(tail -n 1 "$work/log")" >&2
    exit 1
fi

cat >"$work/unpacked/chromium" <<'END'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export LD_LIBRARY_PATH="$here/usr/lib/$(uname -m)-linux-gnu:$here/usr/lib/$(uname -m)-linux-gnu/pulseaudio"
export FONTCONFIG_FILE="$here/fonts.conf"
exec "$here/usr/lib/chromium/chromium-headless-shell" "$@"
END
# Fonts of this machine, and those that it lacked; by name, since the aliases of the system come with no package.
cat >"$work/unpacked/fonts.conf" <<'END'
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>/usr/share/fonts</dir>
  <dir prefix="relative">usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
  <alias><family>sans-serif</family><prefer><family>Liberation Sans</family></prefer></alias>
  <alias><family>serif</family><prefer><family>Liberation Serif</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>Liberation Mono</family></prefer></alias>
</fontconfig>
END
chmod +x "$work/unpacked/chromium"
rm -rf "$folder"
mv "$work/unpacked" "$folder"
