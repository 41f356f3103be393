#!/bin/sh
# The compiler launcher for precompiled headers: compiles one and writes PCH.sum beside it, which ccache takes for its content
# (CCACHE_PCH_EXTSUM). The file itself holds absolute paths, so that no other clone could ever use what this one compiled;
# the sum is over the text of every header in it.
set -e
"$@"
deps= pch=
while [ $# -gt 0 ]; do
  case "$1" in
    -MF) deps=$2 ;;
    -o) pch=$2 ;;
  esac
  shift
done
case "$pch" in
  *.pch | *.gch) sed -e 's/^[^ ]*: *//' -e 's/\\$//' "$deps" | tr -s ' ' '\n' | grep -v cmake_pch | xargs cat | sha256sum > "$pch.sum" ;;
esac
