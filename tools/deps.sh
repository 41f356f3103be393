#!/usr/bin/env bash
# Installs what Creto needs to be built, tested and run, and builds what Debian lacks. Called by `./dev deps`.
#
#   tools/deps.sh             install and build what is missing; does nothing, quickly, when nothing is
#   tools/deps.sh --update    also look for a newer OpenSSL 3.5.x
#   tools/deps.sh --print     print the cache folder and leave
#
# Works on Debian 12 and 13, as root or with sudo. The system's own apt sources are never touched: what comes from
# another suite is fetched through a second apt configuration with its own lists, checked by the same archive keys.
#
# The cache is ${CRETO_DEPS:-${XDG_CACHE_HOME:-~/.cache}/creto/deps}: one folder per name and version, put in place by one
# rename, so a folder that is there is whole. cmake/CretoDeps.cmake looks there.
set -euo pipefail

readonly cache="${CRETO_DEPS:-${XDG_CACHE_HOME:-$HOME/.cache}/creto/deps}"
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
readonly mirror="${CRETO_DEBIAN_MIRROR:-http://deb.debian.org/debian}"
readonly jobs="${CRETO_JOBS:-$(nproc)}"
# The oldest gVisor that runs with systrap on the kernels we know; Debian 12's own (2022) has only ptrace.
readonly runsc_wanted='0.0~20240729'

say() { printf 'deps: %s\n' "$*"; }
die() { printf 'deps: %s\n' "$*" >&2; exit 1; }

update=0
for arg in "$@"; do
  case "$arg" in
    --update) update=1 ;;
    --print) echo "$cache"; exit 0 ;;
    *) die "unknown argument \`$arg\`; use --update, --print or nothing" ;;
  esac
done

[ -r /etc/os-release ] || die "cannot tell which system this is; Creto builds on Debian 12 and 13"
# shellcheck disable=SC1091
. /etc/os-release
case "${ID:-}:${VERSION_ID:-}" in
  debian:12) postgres=postgresql-15 boost=libboost1.81-dev ;;
  debian:13) postgres=postgresql-17 boost=libboost-dev ;;
  *) die "this is ${PRETTY_NAME:-an unknown system}; Creto builds on Debian 12 and 13" ;;
esac

if [ "$(id -u)" = 0 ]; then
  as_root() { "$@" 9>&-; } # no daemon that a package starts may keep our lock
else
  as_root() {
    command -v sudo > /dev/null || die "needs root to install packages; run as root or install sudo"
    sudo --preserve-env=DEBIAN_FRONTEND "$@" 9>&-
  }
fi
export DEBIAN_FRONTEND=noninteractive

packages=(
  # tools to build with
  g++ cmake ninja-build ccache mold pkg-config make perl dpkg-dev ca-certificates git python3
  clang-19 clang-tidy-19 clang-format-19 libclang-rt-19-dev llvm-19
  # libraries
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev
  libsqlite3-dev libpq-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libsimdjson-dev libtomlplusplus-dev
  libyaml-cpp-dev libcli11-dev prometheus-cpp-dev "$boost" libcurl4-openssl-dev libhpdf-dev
  libpng-dev libfreetype-dev fonts-dejavu-core
  libgtest-dev libgmock-dev libbenchmark-dev
  # programs the tests and the example drive
  "$postgres" runc iproute2 nftables mmdebstrap umoci poppler-utils fonts-dejavu-core jq curl zstd
)

# --- packages -----------------------------------------------------------------------------------------------------

missing_packages() {
  local have
  have=$(dpkg-query -W -f='${db:Status-Abbrev}${Package}\n' "${packages[@]}" 2> /dev/null | sed -n 's/^ii //p' || true)
  local p
  for p in "${packages[@]}"; do grep -qxF -- "$p" <<< "$have" || echo "$p"; done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  [ "${#missing[@]}" -gt 0 ] || return 0
  say "installing ${#missing[@]} packages: ${missing[*]}"
  keep_postgres_asleep
  as_root apt-get -qq update || die "apt-get update failed; check the network and the apt sources"
  as_root apt-get -qq install -y --no-install-recommends "${missing[@]}" > "$log" 2>&1 \
    || die "apt-get install failed: $(tail -n 1 "$log"); the whole output is in $log"
}

# Tests start their own PostgreSQL from the package's binaries: no system cluster is to be made or started for them.
keep_postgres_asleep() {
  local conf=/etc/postgresql-common/createcluster.conf
  [ ! -e "$conf" ] || return 0
  as_root mkdir -p /etc/postgresql-common
  printf '# Written by Creto (./dev deps) before PostgreSQL was installed\ncreate_main_cluster = false\n' \
    | as_root tee "$conf" > /dev/null
}

# --- a second apt, which never touches the first -----------------------------------------------------------------

apt_elsewhere() { # suite kind(deb|deb-src) command...
  local root="$work/apt-$1" suite="$1" kind="$2"
  shift 2
  local options=(
    -o "Dir::Etc::sourcelist=$root/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o "Dir::State::lists=$root/lists" -o "Dir::Cache=$root/cache" -o APT::Sandbox::User=root
  )
  if [ ! -e "$root/sources.list" ]; then
    mkdir -p "$root/lists/partial" "$root/cache/archives/partial"
    echo "$kind [signed-by=$keyring] $mirror $suite main" > "$root/sources.list"
    apt-get -qq "${options[@]}" update > "$log" 2>&1 \
      || die "cannot read Debian's index of $suite at $mirror: $(tail -n 1 "$log")"
  fi
  "${1}" "${options[@]}" "${@:2}"
}

# Unpacks the newest source package `name` whose version matches `pattern` into $work/<name>; prints its version.
# An index may list a version that the mirror does not have (yet, or any more): then the next one is taken.
fetch_source() { # name pattern
  local name="$1" pattern="$2" version versions
  versions=$(apt_elsewhere trixie deb-src apt-cache showsrc "$name" | sed -n 's/^Version: //p' | grep -E "$pattern" \
    | sort -rV) || die "Debian 13 offers no source package $name with a version like $pattern"
  rm -rf "${work:?}/$name"
  mkdir -p "$work/$name"
  for version in $versions; do
    if (cd "$work/$name" && apt_elsewhere trixie deb-src apt-get -qq source "$name=$version") > "$log" 2>&1; then
      mv "$work/$name"/*/ "$work/$name/source"
      echo "$version"
      return 0
    fi
    rm -rf "${work:?}/$name"
    mkdir -p "$work/$name"
  done
  die "cannot fetch the source package $name: $(tail -n 1 "$log")"
}

upstream_version() { sed -E 's/^[0-9]+://; s/-[^-]*$//; s/[+~].*//' <<< "$1"; }

newest() { # name -> the newest whole folder of it in the cache, or nothing
  find "$cache" -mindepth 1 -maxdepth 1 -type d -name "$1-[0-9]*" 2> /dev/null | sort -V | tail -n 1
}

put_in_place() { # built-folder name-version
  rm -rf "${cache:?}/$2"
  mv -T "$1" "$cache/$2"
  say "$2 is in $cache/$2"
}

run_logged() { # what command...
  local what="$1"
  shift
  "$@" > "$log" 2>&1 || die "$what failed: $(grep -iE 'error|fatal' "$log" | head -n 1 || tail -n 1 "$log"); the whole output is in $log"
}

# --- gVisor -------------------------------------------------------------------------------------------------------

install_runsc() {
  local have
  have=$(dpkg-query -W -f='${Version}' runsc 2> /dev/null || true)
  if [ -n "$have" ]; then
    dpkg --compare-versions "$have" ge "$runsc_wanted" && return 0
  elif command -v runsc > /dev/null; then
    return 0 # one that did not come as a package: the user's choice
  fi
  case "$(dpkg --print-architecture)" in amd64 | arm64) ;; *) die "gVisor exists for amd64 and arm64 only" ;; esac
  local suite=bookworm-backports # Debian 13 has none of its own; this one needs nothing but libc
  say "installing runsc from $suite"
  mkdir -p "$work/runsc"
  (cd "$work/runsc" && apt_elsewhere "$suite" deb apt-get -qq download runsc) > "$log" 2>&1 \
    || die "cannot fetch runsc from $suite: $(tail -n 1 "$log")"
  chmod -R a+rX "$work"
  as_root apt-get -qq install -y --no-install-recommends "$work"/runsc/runsc_*.deb > "$log" 2>&1 \
    || die "cannot install runsc: $(tail -n 1 "$log"); the whole output is in $log"
}

# --- OpenSSL 3.5: ML-KEM and ML-DSA -------------------------------------------------------------------------------

system_openssl_is_new() {
  local have
  have=$(dpkg-query -W -f='${Version}' libssl-dev 2> /dev/null || true)
  [ -n "$have" ] && dpkg --compare-versions "$have" ge 3.5
}

build_openssl() {
  if [ "$VERSION_ID" != 12 ]; then
    system_openssl_is_new && return 0
    say "installing libssl-dev"
    as_root apt-get -qq install -y libssl-dev > "$log" 2>&1 || die "cannot install libssl-dev: $(tail -n 1 "$log")"
    system_openssl_is_new && return 0
  fi
  local have version target
  have=$(newest openssl)
  [ -n "$have" ] && [ "$update" = 0 ] && return 0
  version=$(fetch_source openssl '^3\.5\.')
  version=$(upstream_version "$version")
  [ "$have" = "$cache/openssl-$version" ] && return 0
  say "building OpenSSL $version (about 3 minutes of one core, libraries only)"
  case "$(dpkg --print-architecture)" in
    amd64) target=linux-x86_64 ;;
    arm64) target=linux-aarch64 ;;
    *) die "OpenSSL is built for amd64 and arm64 only" ;;
  esac
  local prefix="$cache/openssl-$version"
  cd "$work/openssl/source"
  # The engine interface stays: gRPC, libcurl and libpq as packaged refer to its symbols. Trust anchors and openssl.cnf are
  # the system's.
  run_logged 'configuring OpenSSL' ./Configure "$target" --prefix="$prefix" --libdir=lib --openssldir=/usr/lib/ssl \
    shared no-tests no-docs no-apps no-legacy no-afalgeng no-padlockeng enable-ec_nistp_64_gcc_128
  run_logged 'building OpenSSL' make -s build_generated
  run_logged 'building OpenSSL' make -s -j"$jobs" libcrypto.so libssl.so
  local out="$work/openssl/out"
  mkdir -p "$out/lib" "$out/include/openssl"
  cp -a libcrypto.so libcrypto.so.3 libssl.so libssl.so.3 "$out/lib/"
  cp include/openssl/*.h "$out/include/openssl/"
  cp LICENSE.txt "$out/"
  strip --strip-unneeded "$out"/lib/lib{crypto,ssl}.so.3
  cd /
  put_in_place "$out" "openssl-$version"
}

# --- BLAKE3: the reference C and assembly -------------------------------------------------------------------------

build_blake3() {
  [ -n "$(newest blake3)" ] && return 0
  local version dir="$work/blake3" src
  mkdir -p "$dir"
  # From the main archive of this very system; only fetched and unpacked, because installing it would draw in Rust.
  (cd "$dir" && apt-get -qq download librust-blake3-dev) > "$log" 2>&1 || die "cannot fetch librust-blake3-dev: $(tail -n 1 "$log")"
  version=$(upstream_version "$(dpkg-deb -f "$dir"/*.deb Version)")
  say "building BLAKE3 $version"
  dpkg-deb -x "$dir"/*.deb "$dir/x"
  src=$(dirname "$(find "$dir/x" -path '*/c/blake3.c' | head -n 1)")
  [ -f "$src/blake3.h" ] || die "librust-blake3-dev $version does not carry the C sources any more"
  mkdir -p "$dir/out/lib" "$dir/out/include" "$dir/o"
  local files=(blake3.c blake3_dispatch.c blake3_portable.c) f
  case "$(dpkg --print-architecture)" in
    amd64) for f in sse2 sse41 avx2 avx512; do files+=("blake3_${f}_x86-64_unix.S"); done ;;
    arm64) files+=(blake3_neon.c) ;;
  esac
  for f in "${files[@]}"; do
    run_logged 'building BLAKE3' gcc -O3 -fPIC -DNDEBUG -c "$src/$f" -o "$dir/o/$f.o"
  done
  run_logged 'building BLAKE3' ar rcs "$dir/out/lib/libblake3.a" "$dir"/o/*.o
  cp "$src/blake3.h" "$dir/out/include/"
  put_in_place "$dir/out" "blake3-$version"
}

# --- mpdecimal: exact decimal arithmetic --------------------------------------------------------------------------

build_mpdecimal() {
  [ -n "$(newest mpdecimal)" ] && return 0
  local version
  version=$(upstream_version "$(fetch_source mpdecimal '^[4-9]\.')")
  say "building mpdecimal $version"
  cd "$work/mpdecimal/source"
  run_logged 'configuring mpdecimal' ./configure --disable-cxx --disable-shared --disable-doc CFLAGS='-O2 -fPIC'
  run_logged 'building mpdecimal' make -s -j"$jobs" -C libmpdec
  local out="$work/mpdecimal/out"
  mkdir -p "$out/lib" "$out/include"
  cp libmpdec/libmpdec.a "$out/lib/"
  cp libmpdec/mpdecimal.h "$out/include/"
  cp COPYRIGHT.txt "$out/"
  cd /
  put_in_place "$out" "mpdecimal-$version"
}

# --- all of it, one at a time per cache ---------------------------------------------------------------------------

mkdir -p "$cache" || die "cannot write to $cache; set CRETO_DEPS to a folder that can be written"
exec 9> "$cache/.lock"
flock -n 9 || { say "waiting for another run to finish"; flock 9; }
readonly log="$cache/last.log"
work=$(mktemp -d "$cache/.work.XXXXXX")
readonly work
trap 'rm -rf "$work"' EXIT
find "$cache" -mindepth 1 -maxdepth 1 -name '.work.*' ! -path "$work" -exec rm -rf {} + # of runs that were killed

install_packages
build_blake3
build_mpdecimal
install_runsc
build_openssl
say 'nothing is missing'
