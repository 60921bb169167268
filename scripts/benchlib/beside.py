# SPDX-License-Identifier: GPL-2.0-or-later
"""The key-value store after a plain and after a split migration, at the same
time and on the same CPU.

What a host does for others comes and goes within seconds, and a VM's speed
with it: runs after one another differ by a fifth where nothing else changed,
and so do CPUs beside each other.  So one VM has moved already when the other
one does, and their vCPUs share one CPU, to which the kernel gives both the
same time, some milliseconds in turn; all else that works for them has the
others.  What slows that CPU slows both.

While a vCPU waits for a page the other one has the CPU: such a wait counts
twice, in what the one hasn't done and in what the other one has.
"""

import contextlib
import os
import time

from memxlib.wait import check

from .run import fetched_pages


class Beside:
    """A plain migration, and beside it one of the same load that is split,
    or plain, too: then what is found is the error of looking this way."""

    def __init__(self, ideal, other, seconds):
        self._runs = [ideal, other]
        self._seconds = seconds
        self.what = {**other.what, "mode": f"{other.mode}-beside"}

    def measure(self, outer):
        cpus = sorted(os.sched_getaffinity(0))
        check(len(cpus) > 1, "two CPUs are needed, one for both vCPUs and "
                             "one for all else")
        with contextlib.ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, cpus)
            os.sched_setaffinity(0, cpus[1:])
            for run in self._runs:
                run.vcpus_on = {cpus[0]}
                test = stack.enter_context(contextlib.closing(
                    outer.inner(f"beside-{run.name}")))
                vm, switched = run.arrive(test)
            time.sleep(max(0, switched + self._seconds + 1
                           - time.monotonic()))
            return {**self.what, **self._result(vm, switched)}

    def _result(self, vm, switched):
        """beside: [seconds since the second VM ran at its destination,
        operations in that second of the first one and of the second one]"""
        first, second = (dict(run.load.per_second(switched))
                         for run in self._runs)
        both = sorted(first.keys() & second.keys())
        check(all(first[at] for at in both if at >= 0),
              "the VM that had moved before did nothing for a second")
        result = {"beside": [(at, first[at], second[at]) for at in both]}
        if self._runs[1].mode == "split":
            backend = vm.backend()
            result.update(memx_after=backend,
                          fetched_pages=fetched_pages(backend))
        return result
