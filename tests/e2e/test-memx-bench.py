#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
"""Every command of memx-bench runs, reports all keys, reads back what it
wrote, and leaves nothing behind when it is ended in the middle."""

import json
import pathlib
import signal
import subprocess

from memxlib import e2e
from memxlib.wait import ALL, check, wait_until

KEYS = {
    "fault": ["ratio_p50", "ratio_p99"],
    "load": ["p999_over_idle_p99"],
    "stream": ["ratio", "ratio_exclusive"],
    "evict": ["ratio"],
    "touch": ["ratio", "sparse_bytes_ratio"],
    "random": ["ops_ratio"],
    "threads": ["ratio"],
    "scale": ["table_bytes", "age_ms", "split_ms", "victim_us"],
}
# Without --all only these: they have all kinds of keys, and all that is to be
# undone afterwards.
QUICK = ["fault", "stream", "random", "scale"]
# These have no content to compare.
WITHOUT_CONTENT = ["touch", "scale"]


def argv(t, *words):
    return [t.binary("memx-bench"), "--memserver", t.binary("memserver"),
            "--quick", *words]


def check_value(command, result, key):
    value = result[key]
    if value is None:
        reason = result.get(f"{key}_missing")
        check(reason, f"{command}: {key} is null, without a reason")
        return
    for one in value if isinstance(value, list) else [value]:
        check(isinstance(one, (int, float)) and one > 0,
              f"{command}: {key} is {value}")
    check(command != "threads" or len(value) == 4,
          f"{command}: {key} has not 4 values: {value}")
    check(set(result["limits"][key]) == {"must", "aim"},
          f"{command}: {key} has no limits")


def check_figure(command, figure, repetitions):
    for key in ("name", "unit", "pinning", "loadavg", "others_cpus"):
        check(key in figure, f"{command}: a figure lacks {key}")
    for key in ("memx", "raw", "ratio") if "raw_is" in figure else ("memx",):
        series = figure[key]
        where = f"{command}: {figure['name']}: {key}"
        # CPU time of little work may be less than the clock shows: no ratio.
        expected = repetitions if key != "ratio" else \
            sum(raw > 0 for raw in figure["raw"]["values"])
        check(len(series["values"]) == expected,
              f"{where}: not {expected} repetitions")
        check(not expected or
              series["min"] <= series["median"] <= series["max"],
              f"{where}: {series}")


def measure(t, command, prefix=(), repetitions=1):
    result = subprocess.run([*prefix, *argv(t, "--json", "--repetitions",
                                            str(repetitions), command)],
                            timeout=150, check=False, capture_output=True,
                            text=True)
    t.log(result.stdout + result.stderr)
    check(result.returncode == 0,
          f"memx-bench {command} ended with {result.returncode}: "
          + result.stderr)
    result = json.loads(result.stdout)
    check(result["command"] == command, "it ran another command")
    for key in KEYS[command]:
        check_value(command, result, key)
    for figure in result["figures"]:
        check_figure(command, figure, repetitions)
    if not prefix:
        check(result["figures"], f"{command}: no figures")
        check(command in WITHOUT_CONTENT or result["verified_pages"] > 1000,
              f"{command}: no content was compared")
    return result


def measure_unprivileged(t):
    """Neither namespaces nor swap: said, not failed."""
    prefix = ["setpriv", "--bounding-set=-net_admin,-sys_admin"]
    for command in ("evict", "random"):
        result = measure(t, command, prefix)
        for key in KEYS[command]:
            check(result[key] is None,
                  f"{command}: {key} without the privilege for it")


def traces(pid):
    """What a running memx-bench has set up in the system, by its name."""
    swap = pathlib.Path("/proc/swaps").read_text(encoding="utf-8")
    places = [f"/sys/fs/cgroup/memx-bench-{pid}",
              f"/sys/fs/cgroup/memory/memx-bench-{pid}",
              f"/var/tmp/memx-bench-{pid}.swap"]
    return [p for p in places if pathlib.Path(p).exists()] + \
        [line for line in swap.splitlines() if f"memx-bench-{pid}" in line]


def end_in_the_middle(t, number):
    """Ends it once it has set up swap; without root there is none to see."""
    process = subprocess.Popen(argv(t, "--repetitions", "60", "random"),
                               stdout=subprocess.DEVNULL)
    try:
        wait_until("memx-bench sets up its swap", lambda:
                   process.poll() is not None or
                   any("swap" in trace for trace in traces(process.pid)), 60)
        if process.poll() is None:
            process.send_signal(number)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    wait_until(f"nothing of memx-bench is left after signal {number}",
               lambda: not traces(process.pid), 20)


def test(t):
    for command in KEYS if ALL else QUICK:
        measure(t, command,
                repetitions=2 if ALL or command == "fault" else 1)
    measure_unprivileged(t)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) if ALL else \
            (signal.SIGKILL,):
        end_in_the_middle(t, number)
    refused = subprocess.run(argv(t, "fautl"), check=False, timeout=20,
                             capture_output=True, text=True)
    check(refused.returncode == 2 and "fautl" in refused.stderr,
          f"a wrong command gives {refused.returncode}: {refused.stderr}")


e2e.main(test, seconds=580)
