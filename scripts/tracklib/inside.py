#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""In a host of the lab: runs patterns of accesses in a KVM guest, and notes
what became of them.

  inside.py SCALE TRACKER[,TRACKER]... PERCENT[,PERCENT]... PATTERN[,...]

For each tracker and percentage one VM runs the patterns, one after the other.
$LAB_SCRATCH/TRACKER-PERCENT.json has what was seen: at some accesses, which
chunks are local (the host's page table says so); before the accesses that are
judged and after them, what query-memx says.
"""

import json
import os
import re
import struct
import sys
import time
import traceback

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."),
                os.path.join(HERE, "../../tests/e2e")]
# pylint: disable=wrong-import-position
from memxlib import e2e  # noqa: E402
from memxlib.vm import memx_object  # noqa: E402
from memxlib.wait import Failure, check, wait_until  # noqa: E402
from tracklib import plan  # noqa: E402

SECONDS = 3 * 3600
PATTERN_SECONDS = 200           # these are stretched, see wait.PATIENCE
LOOK_SECONDS = 1.0
SAMPLED_SECONDS = 0.6           # longer than the sampler keeps anything away
SAMPLED_POLL_SECONDS = 0.1
# Emulated, a pass costs a second of a CPU, counted (docs/benchmarks.md) less
# than 1 % of one: a tracker's share is no limit on a real CPU and must not be
# one here.
CPU_PERCENT = 100
PRICE_CHUNKS = 64               # one page of each
COST_PERIODS = 10               # at least
WORK_AT = plan.LOW_MIB << 20
FRESH_AT = WORK_AT - (plan.FRESH_MIB << 20)


class TrackedVm:
    def __init__(self, test, tracker, percent):
        self.chunks = plan.CHUNKS[percent]
        size = self.chunks * plan.CHUNK_BYTES
        server = test.memserver(f"server-{tracker}-{percent}")
        self.test = test
        self.tracker, self.percent = tracker, percent
        memory = ["-m", f"{plan.LOW_MIB + (size >> 20) + plan.TOP_MIB}M",
                  "-object", f"memory-backend-ram,id=low,prealloc=on,"
                             f"size={plan.LOW_MIB}M",
                  "-object", memx_object(
                      "work", size, plan.local_bytes(percent), [server],
                      chunk_size=plan.CHUNK_BYTES, tracker=tracker,
                      tracker_cpu=CPU_PERCENT),
                  "-object", f"memory-backend-ram,id=top,"
                             f"size={plan.TOP_MIB}M",
                  "-numa", "node,nodeid=0,cpus=0,memdev=low",
                  "-numa", "node,nodeid=1,memdev=work",
                  "-numa", "node,nodeid=2,memdev=top"]
        reserved = (size >> 20) + plan.FRESH_MIB
        self.vm = test.vm(
            name=f"{tracker}-{percent}", memory=memory, cpus=1, accel="kvm",
            kernel_args=f"memmap={reserved}M${FRESH_AT:#x}")
        check(self.vm.qmp.command("query-kvm")["enabled"], "this is not KVM")
        self._hva = self._find_memory()
        self._pagemap = open(f"/proc/{self.vm.process.pid}/pagemap", "rb",
                             buffering=0)

    def _find_memory(self):
        text = self.vm.qmp.hmp(f"gpa2hva {WORK_AT:#x}")
        match = re.search(r"is (0x[0-9a-f]+)", text)
        check(match, f"gpa2hva says '{text.strip()}'")
        return int(match[1], 16)

    def close(self):
        self._pagemap.close()
        self.vm.quit(60)

    def state(self):
        backend = self.vm.backend("work")
        tracking = backend["tracking"]
        tracking.pop("working-sets")
        return {"faults": backend["faults"], "paging": backend["paging"],
                "tracking": tracking, "local": backend["local"],
                "remote": backend["remote"]}

    def _look(self):
        """Pages in use that are local, of each chunk."""
        pages = plan.CHUNK_BYTES // plan.PAGE_BYTES
        count = self.chunks * pages
        data = os.pread(self._pagemap.fileno(), count * 8,
                        self._hva // plan.PAGE_BYTES * 8)
        entries = struct.unpack(f"{count}Q", data)
        return [sum(entry >> 63 for entry in
                    entries[c * pages:c * pages + plan.PAGES])
                for c in range(self.chunks)]

    def look(self):
        """The same.  What the sampler has is local, too, but not mapped: it
        comes back while one waits."""
        pages = self._look()
        end = time.monotonic() + SAMPLED_SECONDS
        while self.tracker == "sample" and time.monotonic() < end:
            time.sleep(SAMPLED_POLL_SECONDS)
            pages = [max(both) for both in zip(pages, self._look())]
        return pages

    # --- patterns

    def fill(self):
        self.vm.guest.run(f"accesses fill --at {WORK_AT} "
                          f"--chunks {self.chunks} --pages {plan.PAGES} "
                          f"--stride {plan.CHUNK_BYTES}", PATTERN_SECONDS)

    def run(self, pattern, scale):
        words = plan.command(pattern, self.percent, scale)
        warm = plan.warm(pattern, scale)
        began = time.monotonic()
        job = self.vm.guest.start(" ".join([*words, "--at", str(WORK_AT)]))
        job.wait_line(f"^at {warm}$", PATTERN_SECONDS)
        before, judged = self.state(), time.monotonic()
        looks, next_look = [], 0.0
        while job.running:
            if time.monotonic() >= next_look:
                looks.append({"at": self._position(job), "pages": self.look()})
                next_look = time.monotonic() + LOOK_SECONDS
            check(time.monotonic() < began + 6 * PATTERN_SECONDS,
                  f"{pattern} did not end")
            time.sleep(0.1)
        after, judged_s = self.state(), time.monotonic() - judged
        output = job.wait()
        run = {"tracker": self.tracker, "percent": self.percent,
               "pattern": pattern, "scale": scale, "looks": looks,
               "checksum": output.split()[-1], "before": before,
               "after": after, "judged_s": round(judged_s, 1),
               "seconds": round(time.monotonic() - began, 1)}
        self.test.say(f"{self.tracker} {self.percent} % {pattern}: "
                      f"{run['seconds']} s, {len(looks)} looks, period "
                      f"{after['tracking']['period']} ms")
        return run

    @staticmethod
    def _position(job):
        for line in reversed(list(job.lines)):
            if line.startswith("at "):
                return int(line[3:])
        return 0

    # --- costs

    def _set(self, name, value):
        self.vm.qmp.command("qom-set", path="/objects/work", property=name,
                            value=value)

    def _await_periods(self, count):
        """That many more complete ones."""
        end = self.vm.backend("work")["tracking"]["periods"] + count
        wait_until(f"{count} more periods", lambda: self.vm.backend("work")
                   ["tracking"]["periods"] >= end, PATTERN_SECONDS)

    def prices(self):
        """What a fault that the tracker causes costs, and others."""
        job = self.vm.guest.start(
            f"rm -f /tmp/go; accesses price --at {WORK_AT} "
            f"--fresh-at {FRESH_AT} --chunks {PRICE_CHUNKS} --hot 4 "
            f"--pages {plan.PAGES} --stride {plan.CHUNK_BYTES}")
        job.wait_line("^waiting", PATTERN_SECONDS)
        before = self.state()["tracking"]
        if self.tracker != "off":
            self._set("tracker-period", 100)
            self._await_periods(3)
            self._set("tracker-period", 3600000)
            before = self.state()["tracking"]
            time.sleep(1)
        self.vm.guest.run("touch /tmp/go")
        values = re.findall(r"(\w+)=(\d+)", job.wait(PATTERN_SECONDS))
        prices = {f"{name}_ns": int(value) for name, value in values}
        self._set("tracker-period", 0)
        return {**prices, "quiet_periods": before["periods"]}

    def default_cost(self, scale):
        """A pattern again, with the default period, as often as it takes for
        some to end."""
        self._set("tracker-period", 1000)
        began = time.monotonic()
        run = again = self.run("zipf", scale)
        lead = time.monotonic() - began - run["judged_s"]
        while (self.tracker != "off" and
               again["after"]["tracking"]["periods"] <
               run["before"]["tracking"]["periods"] + COST_PERIODS):
            check(time.monotonic() < began + 6 * PATTERN_SECONDS,
                  "its periods do not end")
            again = self.run("zipf", scale)
        self._set("tracker-period", 0)
        return {**run, "after": again["after"],
                "judged_s": round(time.monotonic() - began - lead, 1)}


def measure(test, tracker, percent, patterns, scale):
    path = os.path.join(os.environ["LAB_SCRATCH"], f"{tracker}-{percent}.json")
    result = {"tracker": tracker, "percent": percent, "runs": [],
              "kernel": os.uname().release}
    if os.path.exists(path):  # with --keep: of other patterns
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        result.pop("error", None)
        result["runs"] = [run for run in result["runs"]
                          if run["pattern"] not in patterns]

    def save():
        with open(path, "w", encoding="utf-8") as file:
            json.dump(result, file)
    try:
        vm = TrackedVm(test, tracker, percent)
        vm.fill()
        result["reason"] = vm.state()["tracking"]["reason"]
        for pattern in plan.PATTERNS:
            if pattern not in patterns:
                continue
            result["runs"].append(vm.run(pattern, scale))
            save()
        if percent == 50 and plan.COST in patterns:
            result["default_cost"] = vm.default_cost(scale / 2)
            result["prices"] = vm.prices()
        vm.vm.check_never_stopped()
        vm.close()
    except Failure as error:
        test.log(traceback.format_exc())
        test.say(f"{tracker} {percent} %: not measured: {error}")
        result["error"] = str(error)
    save()


def main(test):
    scale = float(sys.argv[1])
    trackers, percents, patterns = (word.split(",") for word in sys.argv[2:5])
    with open("/sys/kernel/mm/transparent_hugepage/enabled", "w",
              encoding="ascii") as file:
        file.write("never")  # ordinary faults are of 4 KiB, too
    for tracker in trackers:
        for percent in percents:
            inner = test.inner(f"{tracker}-{percent}")
            measure(inner, tracker, int(percent), patterns, scale)
            inner.close()


if __name__ == "__main__":
    os.environ["MEMX_LOGS"] = os.path.join(os.environ["LAB_SCRATCH"], "logs")
    e2e.main(main, SECONDS)
