#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# slow: two benchmark runs with a VM of 1 GiB
"""scripts/bench-migration measures a plain and a split migration over shaped
links, reports every figure of its table, null where it was not measured, and
leaves nothing behind when it is interrupted."""

import json
import os
import signal
import subprocess

from memxlib import e2e
from memxlib.process import Child
from memxlib.wait import Skip, check, wait_until

KEYS = ["total_ratio", "total_ratio_multi", "downtime_delta_ms",
        "gap_delta_ms", "sort_loss_pct", "kv_recovery_s", "kv_dip_pct",
        "kv_steady_loss_pct", "kv_over_loss_pct",
        "pageins_before_switchover", "swap_total_ratio"]
SCRIPT = os.path.join(e2e.TOP, "scripts/bench-migration")


def argv(path, *more):
    return [SCRIPT, "--quick", "--only", "idle-small", "--after", "3",
            "--output", path, *more]


def measure(t, path):
    done = subprocess.run(argv(path, "--modes", "ideal,split", "--json"),
                          capture_output=True, text=True, timeout=400,
                          check=False)
    t.log(done.stdout + done.stderr)
    check(done.returncode == 0, f"it ended with {done.returncode}: "
                                f"{done.stderr[-500:]}")
    result = json.loads(done.stdout)
    with open(path, encoding="utf-8") as file:
        check(json.load(file) == result, "--json and --output differ")
    return result


def children(pid):
    """Of the process, and theirs."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children",
                  encoding="ascii") as file:
            for child in file.read().split():
                found += [int(child)] + children(child)
    return found


def interrupt(t, path):
    """In the middle of a migration into swap."""
    bench = Child("bench", argv(path, "--modes", "swap"),
                  t.log_path("interrupted.log"))
    t.cleanup(bench.end)

    def swaps():
        with open("/proc/swaps", encoding="utf-8") as lines:
            return "memx-swap" in lines.read()
    wait_until("it swaps", swaps, 200)
    below = children(bench.pid)
    check(below, "it has no processes")
    for pid in [bench.pid] + below:  # as a terminal does
        try:
            os.kill(pid, signal.SIGINT)
        except ProcessLookupError:
            pass
    bench.wait_exit(60)
    wait_until("its processes are gone", lambda: not any(
        os.path.exists(f"/proc/{pid}") for pid in below), 30)
    check(not swaps(), "swap was left behind")


def test(t):
    if os.geteuid() != 0:
        raise Skip("network namespaces, swap and cgroups need root")
    path = t.log_path("result.json")
    result = measure(t, path)
    for key in KEYS:
        check(key in result, f"no figure {key}")
    for key in ("total_ratio", "downtime_delta_ms", "gap_delta_ms",
                "pageins_before_switchover"):
        check(result[key] is not None, f"{key} was not measured")
    check(result["pageins_before_switchover"] == 0, "there were page-ins")
    ideal, split = result["runs"]
    check(ideal["link_mib"]["main eth0 in"] > 700,
          f"ideal sent too little: {ideal['link_mib']}")
    for link in "main eth0 in", "sub1 eth0 in", "sub2 eth0 in":
        check(split["link_mib"][link] > 100,
              f"a split does not use its links: {split['link_mib']}")
    check(result["accelerator"], "it does not say which accelerator")
    t.say("measured")
    interrupt(t, path)


e2e.main(test, seconds=880)
