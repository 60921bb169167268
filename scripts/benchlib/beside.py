# SPDX-License-Identifier: GPL-2.0-or-later
"""The key-value store after a plain and after a split migration, at the same
time and on the same CPU.

What a host does for others comes and goes within seconds, and a VM's speed
with it: runs after one another differ by a fifth where nothing else changed,
and so do CPUs beside each other.  So one VM has moved already when the other
one does, and their vCPUs share one CPU, to which the kernel gives both the
same time, some milliseconds in turn; all else that works for them has the
others.  What slows that CPU slows both.

While a vCPU waits for a page the other one has the CPU, for up to some
milliseconds: so what the one has lost to the other is told, too.  The first
seconds, in which the working set comes, don't count.
"""

import contextlib
import os
import time

from memxlib.wait import check

from .run import fetched_pages

SETTLE_S = 5


def cpu_s(vm):
    """CPU time of all its vCPUs so far."""
    total = 0
    for vcpu in vm.qmp.command("query-cpus-fast"):
        path = f"/proc/{vm.process.pid}/task/{vcpu['thread-id']}/schedstat"
        with open(path, encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1e9


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
        vms = []
        with contextlib.ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, cpus)
            os.sched_setaffinity(0, cpus[1:])
            for run in self._runs:
                run.vcpus_on = {cpus[0]}
                test = stack.enter_context(contextlib.closing(
                    outer.inner(f"beside-{run.name}")))
                vm, switched = run.arrive(test)
                vms.append(vm)
            time.sleep(max(0, switched + SETTLE_S - time.monotonic()))
            before = [cpu_s(vm) for vm in vms]
            time.sleep(self._seconds)
            used = [cpu_s(vm) - s for vm, s in zip(vms, before)]
            time.sleep(1)       # the guest tells what it has done
            return {**self.what, **self._result(vms[1], switched),
                    "beside_cpu_s": [round(s, 2) for s in used]}

    def _result(self, vm, switched):
        """beside: [seconds since the second VM ran at its destination,
        operations in that second of the first one and of the second one], of
        the seconds that count"""
        first, second = (dict(run.load.per_second(switched))
                         for run in self._runs)
        both = sorted(at for at in first.keys() & second.keys()
                      if at >= SETTLE_S)
        check(any(first[at] for at in both),
              "the VM that had moved before did nothing")
        result = {"beside": [(at, first[at], second[at]) for at in both]}
        if self._runs[1].mode == "split":
            backend = vm.backend()
            result.update(memx_after=backend,
                          fetched_pages=fetched_pages(backend))
        return result
