#!/usr/bin/env python3
"""Runs clang-tidy over our sources in a build folder's compile_commands.json, and only where something changed.

    clang_tidy.py [--jobs N] [--all] [--changed BASE] BUILD

A file is clean for good once it was found clean, in whatever clone: the key is the content of the file, of every header of ours
that it reaches, of .clang-tidy and of its compile command. Clean keys lie in $XDG_CACHE_HOME/creto/clang-tidy, for a month after
they were last met.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLANG_TIDY = "clang-tidy-19"
MONTH_S = 30 * 24 * 3600
# Tests are left to the compilers, the sanitizers and tools/tidy: they are half of the sources and GoogleTest's macros are slow.
SKIPPED = re.compile(r"(^|/)(tests?|testing|bench)/|_(test|contract|fuzz|bench)\.cc$|^build/")
INCLUDE = re.compile(rb'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)


class Sources:
    """Hashes of files with all that they include, as far as it lies in the tree or in the build folder."""

    def __init__(self):
        self.content = {}
        self.found = {}

    def read(self, path):
        if path not in self.content:
            text = path.read_bytes()
            self.content[path] = (hashlib.sha256(text).digest(), [a or b for a, b in INCLUDE.findall(text)])
        return self.content[path]

    def resolve(self, name, folders):
        for folder in folders:
            key = (name, folder)
            if key not in self.found:
                path = folder / name.decode(errors="replace")
                self.found[key] = path if path.is_file() else None
            if self.found[key]:
                return self.found[key]
        return None

    def digest(self, path, folders):
        """Of the file and everything it reaches, in a fixed order."""
        seen, todo = {}, [path]
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen[current], names = self.read(current)
            for name in names:
                if found := self.resolve(name, [current.parent, *folders]):
                    todo.append(found)
        total = hashlib.sha256()
        for current in sorted(seen):
            total.update(str(current.relative_to(ROOT)).encode() + b"\0" + seen[current])
        return total


def include_folders(command):
    words = shlex.split(command)
    folders = []
    for i, word in enumerate(words):
        if word in ("-I", "-isystem") and i + 1 < len(words):
            folders.append(words[i + 1])
        elif word.startswith("-I") and len(word) > 2:
            folders.append(word[2:])
    return [pathlib.Path(f) for f in folders if f.startswith(str(ROOT))]


def changed_since(base):
    """Files of the tree that differ from the commit `base`, those that git does not know yet among them."""
    def git(*words):
        return subprocess.run(["git", *words, "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    return {ROOT / name for name in [*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")]}


def check(build, path):
    start = time.monotonic()
    done = subprocess.run([CLANG_TIDY, "-p", str(build), "--quiet", "--use-color=0", str(path)], capture_output=True, text=True,
                          cwd=ROOT, check=False)
    return path, done.returncode, done.stdout + ("" if done.returncode == 0 else done.stderr), time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="forget earlier results")
    parser.add_argument("--changed", metavar="BASE", help="only files that differ from this commit")
    options = parser.parse_args()
    build = options.build.resolve()
    try:
        wanted = changed_since(options.changed) if options.changed else None
    except subprocess.CalledProcessError:
        parser.error(f"--changed: git knows no commit `{options.changed}`")

    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "creto" / "clang-tidy"
    cache.mkdir(parents=True, exist_ok=True)
    known = set() if options.all else {p.name for p in cache.iterdir()}
    version = subprocess.run([CLANG_TIDY, "--version"], capture_output=True, check=True).stdout
    rules = hashlib.sha256(version + (ROOT / ".clang-tidy").read_bytes()).digest()

    sources, todo, keys = Sources(), [], {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if path.suffix != ".cc" or not path.is_relative_to(ROOT) or path in keys or SKIPPED.search(str(path.relative_to(ROOT))):
            continue
        if wanted is not None and path not in wanted:
            continue
        digest = sources.digest(path, include_folders(entry["command"]))
        digest.update(rules + entry["command"].replace(str(ROOT), "").encode())
        keys[path] = digest.hexdigest()
        if keys[path] in known:
            (cache / keys[path]).touch()
        else:
            todo.append(path)
    print(f"clang-tidy: {len(todo)} of {len(keys)} files to check", flush=True)

    bad = 0
    # The largest first, so that the last to finish is a small one.
    todo.sort(key=lambda p: -p.stat().st_size)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for n, done in enumerate(concurrent.futures.as_completed([pool.submit(check, build, p) for p in todo]), 1):
            path, code, output, seconds = done.result()
            print(f"  [{n}/{len(todo)}] {path.relative_to(ROOT)} {seconds:.1f} s{'' if code == 0 else '  FAILED'}", flush=True)
            if code == 0:
                (cache / keys[path]).touch()
            else:
                bad += 1
                print(output, flush=True)
    for key in cache.iterdir():
        if time.time() - key.stat().st_mtime > MONTH_S:
            key.unlink(missing_ok=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
