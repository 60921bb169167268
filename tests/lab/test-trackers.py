#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kernels: 7.3 6.12 idle idle-7.3
# timeout: 3600
# slow: a quarter of an hour for each kernel, in an emulated host
"""The trackers that this kernel has, and most machines' kernels lack: their
tests of suite unit, each by itself, in a host that runs it.  Here none of them
may be skipped, and `auto` must take the best.  (Of idle-7.3 those of `idle`: 7.3
tries the others.)"""

import os
import subprocess
import sys

from memxlib import lab

SECONDS = 3540
TEST_SECONDS = 480      # their own deadlines are shorter
OWN = {"7.3": ("rwp", "damon"), "6.12": ("damon",), "idle": ("idle", "damon"),
       "idle-7.3": ("idle",)}
AUTO = {"7.3": "rwp", "6.12": "sample", "idle": "idle", "idle-7.3": "rwp"}
BY_OTHER_NAMES = {"rwp": ("object-bounded",), "idle": ("idle-helper",),
                  "auto": ("tracker/auto",)}
PROGRAMS = ("test-tracker", "test-tracker-look", "test-tracker-prefetch",
            "test-ageing")
# Needs Linux 6.18: memory that pages, in huge pages.
HUGE_PROGRAMS = {"idle-7.3": ("test-huge",)}
lab.inside(memory_mib=3072, seconds=SECONDS)

MEMX = os.path.join(lab.TOP, "build/memx")
ENVIRONMENT = dict(
    os.environ,
    MEMX_MEMSERVER=f"{MEMX}/memserver/memserver",
    MEMXCTL=f"{MEMX}/memserver/memxctl",
    MEMX_IDLE_HELPER=f"{MEMX}/tools/memx-idle-helper",
    MEMX_TRACKER_AUTO=AUTO[os.environ["LAB_KERNEL"]])


def paths(program, kinds):
    """Of its tests, those that need one of these trackers."""
    names = [name for kind in kinds for name in BY_OTHER_NAMES.get(kind, ())]
    listed = subprocess.run([program, "-l"], stdout=subprocess.PIPE,
                            text=True, check=True).stdout.split()
    return [path for path in listed
            if path.startswith("/") and path.endswith(
                tuple(f"/{kind}" for kind in kinds))
            or any(f"/{name}" in path for name in names)]


def run(program, path):
    """Why it failed, or None."""
    try:
        done = subprocess.run([program, "--tap", "-p", path],
                              env=ENVIRONMENT, timeout=TEST_SECONDS,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True,
                              check=False)
    except subprocess.TimeoutExpired:
        return f"not done within {TEST_SECONDS} s"
    if done.returncode or "# SKIP" in done.stdout or "ok 1" not in done.stdout:
        return f"status {done.returncode}\n{done.stdout}"
    return None


def main():
    kernel = os.environ["LAB_KERNEL"]
    tests = [(os.path.join(MEMX, "tests/unit", name), path)
             for name in PROGRAMS + HUGE_PROGRAMS.get(kernel, ())
             for path in paths(os.path.join(MEMX, "tests/unit", name),
                               (*OWN[kernel], "auto"))]
    failed = 0
    print(f"1..{len(tests)}", flush=True)
    for number, (program, path) in enumerate(tests, 1):
        why = run(program, path)
        if why:
            failed += 1
            print("# " + why.rstrip().replace("\n", "\n# "))
        print(f"{'not ok' if why else 'ok'} {number} {path}", flush=True)
    return 1 if failed or not tests else 0


sys.exit(main())
