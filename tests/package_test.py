#!/usr/bin/env python3
"""The Debian package, unpacked: its program runs with what the package brings, and a copy of its home is a backup.

    package_test.py --creto BINARY

The package is made of the build that BINARY is from.
"""
import glob
import os
import shutil
import subprocess
import sys

from installation import HUMAN, PATIENCE_S, Installation, options_of, require

PARTS = ("usr/bin/creto", "usr/bin/creto-image", "usr/share/bash-completion/completions/creto", "usr/share/doc/creto/operations.md", "usr/lib/systemd/system/creto.service")


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, **options)
    require(done.returncode == 0, f"{' '.join(words)}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def unpacked(creto, work):
    build = os.path.dirname(os.path.dirname(creto))
    made = os.path.join(work, "made")
    run("cmake", "--build", build, "--target", "creto_package_files")
    run("cpack", "--config", os.path.join(build, "CPackConfig.cmake"), "-B", made, "-D", f"CPACK_OUTPUT_FILE_PREFIX={made}", cwd=work)
    package, = glob.glob(os.path.join(made, "creto_*.deb"))
    root = os.path.join(work, "root")
    run("dpkg-deb", "--extract", package, root)
    missing = [part for part in PARTS if not os.path.exists(os.path.join(root, part))]
    require(not missing, f"not in the package: {missing}")
    depends = run("dpkg-deb", "--field", package, "Depends")
    require("libgrpc++" in depends and "libssl" not in depends.replace("libssl3t64", "libssl") or not own_openssl(root), f"it depends on {depends}")
    return root


def own_openssl(root):
    return glob.glob(os.path.join(root, "usr/lib/*/creto/libcrypto.so.3"))


def it_runs_with_what_it_brings(root):
    program = os.path.join(root, "usr/bin/creto")
    mapped = {line.split()[0]: line.split()[2] for line in run("ldd", program).splitlines() if "=>" in line}
    if own_openssl(root):
        for name in ("libssl.so.3", "libcrypto.so.3"):
            require(os.path.realpath(mapped[name]).startswith(os.path.realpath(root)), f"{name} comes from {mapped[name]}")
    path = [line for line in run("readelf", "--dynamic", program).splitlines() if "PATH" in line]
    require(all("$ORIGIN" in line and ".cache" not in line for line in path), f"it looks for libraries in {path}")
    require("_creto" in open(os.path.join(root, "usr/share/bash-completion/completions/creto"), encoding="utf-8").read(), "no completion")
    return program


def a_copy_of_the_home_is_a_backup(home):
    home.initialise(settings='services = ["metering", "oversight"]\n')
    home.serve()
    agent = home.creto("agents", "register", "clerk", "--permit", "usage.*")["identity"]
    home.creto("metering", "report", HUMAN, "pages", "--units", "7", "--key", "first")
    home.stop()
    copy = os.path.join(home.work, "backup.tar")
    run("tar", "-C", home.work, "-cf", copy, "home")
    shutil.rmtree(home.home)
    run("tar", "-C", home.work, "-xf", copy)
    home.serve()
    require([one["identity"] for one in home.creto("agents", "list", "--name", "clerk")["agents"]] == [agent], "the agent is not in the copy")
    used = home.creto("usage", "show", HUMAN)
    require("7" in str(used), f"the usage is not in the copy: {used}")
    home.creto("metering", "verify")
    home.creto("audit", "verify", "--tiles", os.path.join(home.home, "audit"), "--key", os.path.join(home.home, "audit.vkey"))
    home.stop()


def main():
    creto = options_of(__doc__).parse_args().creto
    if not shutil.which("dpkg-deb"):
        print("packages are made on Debian")
        return 77
    home = Installation(creto, "package")
    try:
        home.creto.binary = it_runs_with_what_it_brings(unpacked(creto, home.work))
        a_copy_of_the_home_is_a_backup(home)
    except BaseException:
        print(f"what is left is in {home.work}", file=sys.stderr)
        home.stop()
        raise
    shutil.rmtree(home.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
