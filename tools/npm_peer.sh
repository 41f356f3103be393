#!/usr/bin/env bash
# Puts a peer from npm into the cache of tools/deps.sh, and prints its folder: Cedar's own engine (cedar-wasm), a reader of
# Arrow files (apache-arrow). Tests and benchmarks hold ours against them; nothing else needs them. Called by ./dev.
#
#   tools/npm_peer.sh NAME      prints nothing, and says why on stderr, where there is no node or no npm registry
set -euo pipefail

# With the sum of what the registry serves: what else comes under this version is not taken.
case "$1" in
  cedar-wasm)
    package=@cedar-policy/cedar-wasm
    version=4.9.1
    sum=efee7b1189169a40466ac05053a52175a7f0c6b63e617cc1971a58667df7b35611f7bf16e99aa02c402f1dbdd68355cc2332d65a896384561eade8e93a9bf1b8
    ;;
  apache-arrow)
    package=apache-arrow
    version=21.2.0
    sum=1f17ba020ab6ea040e33de78aa9cd84a594904f265f9ed7a5390a47ee31484bacd6dafb99ca92db485657e56a8bcdea8693adab6a30600ef07e6efda36198759
    ;;
  *)
    echo "npm_peer: no peer \`$1\`" >&2
    exit 2
    ;;
esac

cache="$("$(dirname "${BASH_SOURCE[0]}")/deps.sh" --print)"
readonly cache folder="$cache/npm-$1-$version" name="$1 $version"

without() {
  printf 'deps: %s cannot be compared with: %s\n' "$name" "$*" >&2
  exit 0
}

fetch() {
  command -v npm > /dev/null || without "npm is not installed"
  mkdir -p "$cache"
  exec 9> "$cache/.lock" # the one of deps.sh
  flock 9
  [ ! -d "$folder" ] || return 0
  work=$(mktemp -d "$cache/.work.XXXXXX")
  readonly work
  trap 'rm -rf "$work"' EXIT
  # In a folder of its own, where no project has settings for npm.
  (cd "$work" && timeout 120 npm pack --loglevel=error --fetch-retries=0 --fetch-timeout=30000 "$package@$version") \
    > "$work/log" 2>&1 || without "npm cannot fetch it: $(grep -m 1 . "$work/log" || echo "no answer within 120 s")"
  (cd "$work" && echo "$sum  $(ls ./*.tgz)" | sha512sum --check --status) || without "it is not the package we know"
  tar -xzf "$work"/*.tgz -C "$work"
  mv -T "$work/package" "$folder"
  printf 'deps: %s is in %s\n' "$name" "$folder" >&2
}

command -v node > /dev/null || without "node is not installed"
[ -d "$folder" ] || fetch
echo "$folder"
