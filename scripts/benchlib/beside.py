# SPDX-License-Identifier: GPL-2.0-or-later
"""The key-value store after a plain and after a split migration, at the same
time.

What a host does for others comes and goes within minutes, and a VM's speed
with it: runs after one another differ by a fifth where nothing else changed.
So both VMs migrate, and then run side by side, each on one half of the CPUs.
They change places again and again; of two turns in a row the geometric mean
of the ratios has neither the places' difference nor what slowed both.
"""

import contextlib
import math
import os
import statistics
import time

from memxlib.wait import check

from .run import fetched_pages

TURN_S = 3
SETTLE_S = 0.5      # at a turn's start, not counted


def halves():
    cpus = sorted(os.sched_getaffinity(0))
    middle = len(cpus) // 2
    return set(cpus[:middle]), set(cpus[middle:])


def pin(vm, cpus):
    """All threads; those that come to be inherit it."""
    check(vm.process.running, "QEMU has ended")
    for thread in os.listdir(f"/proc/{vm.process.pid}/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:
            pass


class Beside:
    """An ideal and a split run of the same load, and what comes after."""

    def __init__(self, ideal, split, seconds):
        self._runs = [ideal, split]
        self._seconds = seconds
        self.what = {**split.what, "mode": "beside"}

    def measure(self, outer):
        check(all(halves()), "two CPUs are needed, one for each VM")
        with contextlib.ExitStack() as stack:
            vms = []
            for run in self._runs:
                test = stack.enter_context(contextlib.closing(
                    outer.inner(f"beside-{run.name}")))
                vms.append(run.arrive(test))
            before = fetched_pages(vms[1].backend())
            turns = self._turns(vms)
            after = vms[1].backend()
        return {**self.what, **losses([turns]), "turns": turns,
                "memx_after": after, "fetched_before": before,
                "fetched_meanwhile": fetched_pages(after) - before}

    def _turns(self, vms):
        """Pairs of operations a second (ideal, split), one for each turn."""
        near, far = halves()
        began = []
        while len(began) * TURN_S < self._seconds or len(began) % 2:
            for vm, cpus in zip(vms, (near, far)):
                pin(vm, cpus)
            began.append(time.monotonic())
            time.sleep(TURN_S)
            near, far = far, near
        time.sleep(TURN_S)      # the guest tells what it has done
        turns = [[run.load.rate(at + SETTLE_S, at + TURN_S)
                  for run in self._runs] for at in began]
        check(all(rate > 0 for turn in turns for rate in turn),
              "a VM did nothing in one of its turns")
        return turns


def losses(turns):
    """In percent, of each two turns in a row, of one run or of several:
    their median, quartiles and the median's error."""
    pairs = [100 * (1 - math.sqrt(s0 * s1 / (i0 * i1)))
             for run in turns
             for (i0, s0), (i1, s1) in zip(run[::2], run[1::2])]
    quartiles = (statistics.quantiles(pairs, n=4, method="inclusive")
                 if len(pairs) > 1 else pairs * 3)
    # The median's standard error, of what is distributed about normally.
    error = (1.25 * statistics.stdev(pairs) / math.sqrt(len(pairs))
             if len(pairs) > 1 else None)
    return {"loss_pct": round(statistics.median(pairs), 2),
            "loss_quartiles_pct": [round(quartiles[0], 2),
                                   round(quartiles[2], 2)],
            "loss_error_pct": error and round(error, 2)}
