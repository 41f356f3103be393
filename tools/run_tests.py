#!/usr/bin/env python3
"""Runs what ctest knows of a build folder and counts single GoogleTest cases.

ctest counts executables; we want to know how many claims hold. Every GoogleTest executable writes its own XML, from
which the last line of the output is counted: `N passed, N failed, N skipped`. An executable that crashes, times out or leaves with
a non-zero code although its cases passed (a sanitizer's finding at exit) is one more failure.

    run_tests.py BUILD [--concurrent TSAN_BUILD] [REGEX]    REGEX is searched in executable names and in Suite.Case
    run_tests.py --list --label LABEL BUILD [REGEX]         prints the names of the labelled tests and runs nothing

With CI in the environment a skip that names a missing $CRETO_... variable is a failure: there the data must be there.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

SHOW_LINES = 400  # of the output of a failing test; the whole of it is in its log


class Test:
    def __init__(self, build, entry):
        self.build = build
        self.name = entry["name"]
        self.command = entry.get("command", [])
        properties = {p["name"]: p["value"] for p in entry.get("properties", [])}
        self.labels = properties.get("LABELS", [])
        self.timeout = float(properties.get("TIMEOUT", 300))
        self.cwd = properties.get("WORKING_DIRECTORY", str(build))
        self.environment = dict(e.split("=", 1) for e in properties.get("ENVIRONMENT", []))
        self.alone = bool(properties.get("RUN_SERIAL", False))
        self.skip_code = properties.get("SKIP_RETURN_CODE")
        self.cases = None  # a GoogleTest filter; None means all

    @property
    def is_gtest(self):
        """creto_test() gives a test the name of its executable; anything else is a script of ours."""
        return len(self.command) == 1 and os.path.basename(self.command[0]) == self.name

    def list_cases(self):
        done = subprocess.run(self.command + ["--gtest_list_tests"], capture_output=True, text=True, cwd=self.cwd,
                              env={**os.environ, **self.environment}, check=False)
        suite = ""
        for line in done.stdout.splitlines():
            line = line.split("#")[0].rstrip()
            if line.endswith(".") and not line.startswith(" "):
                suite = line
            elif line.startswith("  ") and suite:
                yield suite + line.strip()


class Outcome:
    def __init__(self, test, tag):
        self.test = test
        self.title = test.name + tag
        self.passed = 0
        self.failed = []
        self.skipped = []  # (name, reason)
        self.seconds = 0.0
        self.output = ""


def load(build, label=None):
    build = pathlib.Path(build).resolve()
    done = subprocess.run(["ctest", "--test-dir", str(build), "--show-only=json-v1"], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"run_tests: ctest cannot list the tests of {build}: {done.stderr.strip()}")
    tests = [Test(build, entry) for entry in json.loads(done.stdout)["tests"]]
    return [t for t in tests if label is None or label in t.labels]


def select(tests, regex):
    """Whole executables whose name matches; of the others the cases that match."""
    if not regex:
        return tests
    wanted = re.compile(regex)
    chosen = []
    for test in tests:
        if wanted.search(test.name):
            chosen.append(test)
        elif test.is_gtest and os.path.exists(test.command[0]):
            cases = [c for c in test.list_cases() if wanted.search(c)]
            if cases:
                test.cases = ":".join(cases)
                chosen.append(test)
    return chosen


def run(test, tag):
    results = test.build / "test-results"
    results.mkdir(exist_ok=True)
    xml, log = results / f"{test.name}.xml", results / f"{test.name}.log"
    xml.unlink(missing_ok=True)
    environment = {**os.environ, **test.environment}
    if test.is_gtest:
        environment["GTEST_OUTPUT"] = f"xml:{xml}"
        environment["GTEST_COLOR"] = "no"
        if test.cases:
            environment["GTEST_FILTER"] = test.cases
    outcome = Outcome(test, tag)
    start = time.monotonic()
    with open(log, "wb") as sink:
        try:
            child = subprocess.Popen(test.command, cwd=test.cwd, env=environment, stdin=subprocess.DEVNULL, stdout=sink,
                                     stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = child.wait(test.timeout)
                trouble = None if code == 0 else f"left with code {code}" if code > 0 else f"died of signal {-code}"
            except subprocess.TimeoutExpired:
                code, trouble = None, f"ran longer than {test.timeout:.0f} s"
            finally:
                stop(child)
        except OSError as error:
            code, trouble = None, f"cannot be started: {error}"
    outcome.seconds = time.monotonic() - start
    outcome.output = log.read_text(errors="replace")
    if test.is_gtest:
        read_xml(xml, outcome, trouble or "wrote no results")
    elif trouble is None:
        outcome.passed = 1
    elif test.skip_code is not None and code == int(test.skip_code):
        lines = outcome.output.strip().splitlines()
        skip(outcome, test.name, lines[-1] if lines else "no reason given")
        trouble = None
    if trouble and not outcome.failed:
        outcome.failed.append(f"{test.name} {trouble}")
    return outcome


def stop(child):
    """Ends what the test left running in its own session: it and its children only."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def read_xml(path, outcome, trouble):
    try:
        document = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError):
        outcome.failed.append(f"{outcome.test.name} {trouble}")
        return
    for case in document.iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None:
            outcome.failed.append(name)
        elif skipped is not None:
            lines = (skipped.get("message") or "").strip().splitlines()
            skip(outcome, name, " ".join(lines[1:] if len(lines) > 1 else lines) or "no reason given")
        elif case.get("status") == "notrun":
            outcome.skipped.append((name, "disabled"))
        else:
            outcome.passed += 1
    if document.getroot().find("./testsuite/failure") is not None:
        outcome.failed.append(f"{outcome.test.name}: set-up or tear-down of a suite")


def skip(outcome, name, reason):
    if os.environ.get("CI") and "$CRETO_" in reason:
        outcome.failed.append(f"{name} was skipped, which CI does not allow: {reason}")
    else:
        outcome.skipped.append((name, reason))


def report(outcome):
    count = outcome.passed + len(outcome.failed) + len(outcome.skipped)
    word = "FAILED" if outcome.failed else "ok"
    print(f"  {word:6} {outcome.title:40} {count:5} cases {outcome.seconds:7.1f} s", flush=True)
    if outcome.failed:
        lines = outcome.output.splitlines()
        if len(lines) > SHOW_LINES:
            print(f"    ... {len(lines) - SHOW_LINES} lines before this in test-results/{outcome.test.name}.log")
        for line in lines[-SHOW_LINES:]:
            print(f"    {line}")


def run_all(tests, jobs, tag):
    outcomes = []
    together = [t for t in tests if not t.alone]
    # Longest limit first: what may take long should not start last.
    together.sort(key=lambda t: -t.timeout)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run, t, tag) for t in together]):
            outcomes.append(done.result())
            report(outcomes[-1])
    for test in tests:
        if test.alone:
            outcomes.append(run(test, tag))
            report(outcomes[-1])
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("regex", nargs="?", default="")
    parser.add_argument("--concurrent", metavar="TSAN_BUILD", help="run the tests labelled `concurrent` from here too")
    parser.add_argument("--label")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_intermixed_args()
    try:
        re.compile(options.regex)
    except re.error as error:
        sys.exit(f"run_tests: `{options.regex}` is not a regular expression: {error}")

    tests = select(load(options.build, options.label), options.regex)
    if options.list:
        print(" ".join(t.name for t in tests))
        return 0
    if not tests:
        print(f"no test matches `{options.regex}`")
        print("0 passed, 0 failed, 0 skipped")
        return 1

    outcomes = run_all(tests, options.jobs, "")
    if options.concurrent:
        outcomes += run_all(select(load(options.concurrent, "concurrent"), options.regex), options.jobs, " (tsan)")

    reasons = {}
    for outcome in outcomes:
        for name, reason in outcome.skipped:
            reasons.setdefault(reason, []).append(name)
    for reason, names in sorted(reasons.items()):
        print(f"skipped {len(names)} ({names[0]}{', ...' if len(names) > 1 else ''}): {reason}")
    for outcome in outcomes:
        for name in outcome.failed:
            print(f"failed  {outcome.title}: {name}")
    failed = sum(len(o.failed) for o in outcomes)
    print(f"{sum(o.passed for o in outcomes)} passed, {failed} failed, {sum(len(o.skipped) for o in outcomes)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
