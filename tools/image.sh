#!/usr/bin/env bash
# Makes an image for sandboxes: Debian packages and files of your own, as an OCI layout whose digest depends on nothing else.
#
#   tools/image.sh LAYOUT [--packages python3,...] [SOURCE:DESTINATION ...]
#
# LAYOUT is the folder to make, <image directory>/<name>; it is replaced in one step, and left alone where it is up to date. Each
# SOURCE, a file or folder, is copied to DESTINATION inside. Packages are unpacked by mmdebstrap without running anything of theirs;
# what that gave is kept in ${XDG_CACHE_HOME:-~/.cache}/creto/images by suite and package list, so that a second image costs seconds.
# Prints the digest. Needs root (mmdebstrap and umoci set owners).
set -euo pipefail

readonly cache="${CRETO_IMAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/creto/images}"
readonly suite="${CRETO_IMAGE_SUITE:-bookworm}"
# Fixed times: two builds of the same content are the same bytes.
export SOURCE_DATE_EPOCH=1735689600
readonly created=2025-01-01T00:00:00Z

die() { printf 'image: %s\n' "$*" >&2; exit 1; }

packages=python3
layout=
files=()
while [ $# -gt 0 ]; do
  case "$1" in
    --packages) packages="${2:?--packages needs a list}"; shift ;;
    -*) die "unknown argument \`$1\`" ;;
    *) if [ -z "$layout" ]; then layout=$1; else files+=("$1"); fi ;;
  esac
  shift
done
[ -n "$layout" ] || die "usage: tools/image.sh LAYOUT [--packages LIST] [SOURCE:DESTINATION ...]"
[ "$(id -u)" = 0 ] || die "needs root: mmdebstrap and umoci set owners"
for tool in mmdebstrap umoci tar sha256sum; do
  command -v "$tool" > /dev/null || die "\`$tool\` is missing: run ./dev deps"
done

mkdir -p "$cache"
exec 9> "$cache/.lock"
flock 9
work=$(mktemp -d "$cache/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
find "$cache" -mindepth 1 -maxdepth 1 -name '.work.*' ! -path "$work" -mmin +60 -exec rm -rf {} + # of runs that were killed

tar_reproducibly() { # folder archive
  tar --create --file="$2" --directory="$1" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime .
}

# --- the packages ------------------------------------------------------------------------------------------------------

key=$(printf '%s\n' 1 "$suite" "$packages" "$(dpkg --print-architecture)" | sha256sum | cut -c1-24)
readonly base="$cache/base-$key.tar"
if [ ! -e "$base" ]; then
  # A folder first: what must go (documentation, logs with today's date) is easier to see there.
  mmdebstrap --quiet --variant=extract --include="$packages" "$suite" "$work/base" 2> "$work/log" 9>&- \
    || die "mmdebstrap failed: $(tail -n 1 "$work/log")"
  rm -rf "$work"/base/usr/share/{doc,man,info,lintian,locale} "$work"/base/var/{cache,log,lib/apt,lib/dpkg}/* "$work"/base/dev/*
  mkdir -p "$work"/base/{proc,sys,dev,run,tmp,etc,home/agent}
  chmod 1777 "$work/base/tmp"
  tar_reproducibly "$work/base" "$work/base.tar"
  mv "$work/base.tar" "$base"
fi

# --- files of our own --------------------------------------------------------------------------------------------------

mkdir -p "$work/own"
for pair in "${files[@]}"; do
  source=${pair%%:*} destination=${pair#*:}
  [ -e "$source" ] || die "there is no \`$source\`"
  case "$destination" in /*) ;; *) die "\`$destination\` must be absolute" ;; esac
  mkdir -p "$work/own$(dirname "$destination")"
  if [ -d "$source" ]; then
    mkdir -p "$work/own$destination"
    cp -rL "$source/." "$work/own$destination/"
  else
    cp -L "$source" "$work/own$destination"
  fi
done
find "$work/own" -name __pycache__ -prune -exec rm -rf {} +
find "$work/own" -type d -exec chmod 755 {} +
find "$work/own" -type f -exec chmod u=rwX,go=rX {} +
tar_reproducibly "$work/own" "$work/own.tar"

content=$(cat <(sha256sum < "$base") <(sha256sum < "$work/own.tar") | sha256sum | cut -c1-64)
digest_of() { sed -n 's/.*"digest":"\(sha256:[0-9a-f]*\)".*/\1/p' "$1/index.json" | head -n 1; }
if [ -e "$layout/index.json" ] && [ "$(cat "$layout/.content" 2> /dev/null)" = "$content" ]; then
  digest_of "$layout"
  exit 0
fi

# --- the layout --------------------------------------------------------------------------------------------------------

umoci init --layout "$work/layout"
umoci new --image "$work/layout:latest"
umoci raw add-layer --image "$work/layout:latest" --history.created="$created" --history.created_by="packages $packages" "$base" 9>&-
umoci raw add-layer --image "$work/layout:latest" --history.created="$created" --history.created_by="files" "$work/own.tar" 9>&-
umoci config --image "$work/layout:latest" --created="$created" --no-history
umoci gc --layout "$work/layout" 2> /dev/null
echo "$content" > "$work/layout/.content"
chmod -R a+rX "$work/layout"
mkdir -p "$(dirname "$layout")"
rm -rf "$layout.old"
[ ! -e "$layout" ] || mv -T "$layout" "$layout.old"
mv -T "$work/layout" "$layout"
rm -rf "$layout.old"
digest_of "$layout"
