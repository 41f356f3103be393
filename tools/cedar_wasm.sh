#!/usr/bin/env bash
# Puts Cedar's own engine, the npm package @cedar-policy/cedar-wasm, into the cache of tools/deps.sh, and prints its folder.
# Tests and benchmarks compare ours with it; nothing else needs it. Called by ./dev.
#
#   tools/cedar_wasm.sh       prints nothing, and says why on stderr, where there is no node or no npm registry
set -euo pipefail

# With the sum of what the registry serves: what else comes under this version is not taken.
readonly version=4.9.1
readonly sum=efee7b1189169a40466ac05053a52175a7f0c6b63e617cc1971a58667df7b35611f7bf16e99aa02c402f1dbdd68355cc2332d65a896384561eade8e93a9bf1b8

cache="$("$(dirname "${BASH_SOURCE[0]}")/deps.sh" --print)"
readonly cache folder="$cache/cedar-wasm-$version"

without() {
  printf 'deps: no Cedar to compare with: %s\n' "$*" >&2
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
  (cd "$work" && timeout 120 npm pack --loglevel=error --fetch-retries=0 --fetch-timeout=30000 "@cedar-policy/cedar-wasm@$version") \
    > "$work/log" 2>&1 || without "npm cannot fetch cedar-wasm $version: $(grep -m 1 . "$work/log" || echo "no answer within 120 s")"
  (cd "$work" && echo "$sum  $(ls ./*.tgz)" | sha512sum --check --status) || without "cedar-wasm $version is not the package we know"
  tar -xzf "$work"/*.tgz -C "$work"
  mv -T "$work/package" "$folder"
  printf 'deps: cedar-wasm %s is in %s\n' "$version" "$folder" >&2
}

command -v node > /dev/null || without "node is not installed"
[ -d "$folder" ] || fetch
echo "$folder"
