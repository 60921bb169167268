# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest does before, while and after it migrates.

A load has four moments: prepare() before anything is measured, moving() when
memory begins to be transferred, moved() when the guest runs at the
destination, and result(), which waits for what is to be seen afterwards.
"""

import time

from memxlib.wait import check

MIB = 1 << 20
# The guest's kernel, its programs and what they need besides the data.
GUEST_OWN_MIB = 160
# Since the memory that isn't used any more was.  A tracker's period is some
# seconds, and what was used in the same one is alike to it.
SETTLED_S = 30
# memcached's slab class for our items, over the value that they hold.
KV_BYTES_PER_VALUE_BYTE = 1184 / 1024


class Idle:
    """Memory is written once and kept."""

    def __init__(self, size_mib, rate_bits_per_s):
        del rate_bits_per_s
        self._mib = size_mib - GUEST_OWN_MIB - size_mib // 16

    def prepare(self, guest):
        job = guest.start(f"rapid-write {self._mib} 0")
        job.wait_line("^round 1", 300)

    def moving(self, guest):
        pass

    def moved(self, guest):
        pass

    def result(self, switched, seconds):
        del switched
        time.sleep(seconds)
        return {}


class RapidWrite(Idle):
    """One half of memory is kept, of the other RapidWrite rewrites all and
    sleeps; long enough to be migrated at all, as in the paper."""

    def __init__(self, size_mib, rate_bits_per_s):
        super().__init__(size_mib, rate_bits_per_s)
        self._hot_mib = size_mib // 2
        self._mib -= self._hot_mib
        transfer = self._hot_mib * MIB * 8 / rate_bits_per_s
        self._sleep = max(5, round(1.3 * transfer))

    def prepare(self, guest):
        super().prepare(guest)
        job = guest.start(f"rapid-write {self._hot_mib} {self._sleep}")
        job.wait_line("^round 2", 600)


class Sort:
    """GNU sort, stopped while memory is transferred.  It runs on while an
    ordinary VM's history is learnt: the paper's runs until it is stopped and
    its history is always there."""

    def __init__(self, size_mib, rate_bits_per_s):
        del rate_bits_per_s
        # With as much again for the result and twice that for sort's buffer,
        # all of it in memory, it fits the main host.
        self._bytes = size_mib // 12 * MIB
        self._job = self._guest = None
        self._began = self._ran = None

    def prepare(self, guest):
        # The other half of the memory has been used, too, some time ago.
        other = guest.size_mib // 2 - GUEST_OWN_MIB
        guest.start(f"rapid-write {other} 0").wait_line("^round 1", 300)
        time.sleep(SETTLED_S)
        guest.run(f"gendata {self._bytes} > /tmp/data", 120)
        self._job = guest.start(
            f"gnu-sort -S {self._bytes * 2 // MIB}M -T /tmp -o /tmp/sorted "
            "/tmp/data && gnu-b2sum /tmp/sorted")
        self._began = time.monotonic()
        time.sleep(4)

    def moving(self, guest):
        guest.run("killall -STOP gnu-sort")
        self._ran = time.monotonic() - self._began

    def moved(self, guest):
        self._guest = guest
        self._began = time.monotonic()
        guest.run("killall -CONT gnu-sort")

    def result(self, switched, seconds):
        del switched, seconds
        checksum = self._job.wait(300).split()[0]
        after = time.monotonic() - self._began
        return {"sort_s": self._ran + after, "sort_after_s": after,
                "sort_before_s": self._ran, "checksum": checksum}


class KeyValue:
    """memcached under load from the guest itself, all the time."""

    LOCAL_SHARE = 5 / 6  # of half the memory, as 5 GB of 6 in the paper
    BEFORE_S = 12

    def __init__(self, size_mib, rate_bits_per_s):
        del rate_bits_per_s
        self._mib = int(size_mib / 2 * self.LOCAL_SHARE)
        self._other_mib = (size_mib - self._mib - GUEST_OWN_MIB
                           - size_mib // 16)
        self._job = self._began = None

    def prepare(self, guest):
        # The rest of the memory has been used, too, some time ago.
        guest.start(f"rapid-write {self._other_mib} 0").wait_line("^round 1",
                                                                  300)
        values = int(self._mib / KV_BYTES_PER_VALUE_BYTE)
        guest.run(f"memcached -d -u root -t 1 -m {self._mib * 2} -s /tmp/kv")
        self._load(guest, values)

    def _load(self, guest, values):
        self._start(guest, values)

    def _start(self, guest, values, operations=""):
        self._job = guest.start("while ! test -S /tmp/kv; do usleep 100000; "
                                "done; exec kv-load /tmp/kv "
                                f"{values} {operations}")
        self._job.wait_line("^filled", 300)
        self._began = time.monotonic()
        time.sleep(self.BEFORE_S)

    def moving(self, guest):
        pass

    def moved(self, guest):
        pass

    def result(self, switched, seconds):
        time.sleep(seconds)
        series = self.per_second(switched)
        return {"kv_ops": series, "kv_mib": self._mib,
                "kv_before": round(self._rate_before())}

    def _rate_before(self):
        """Operations a second, before it migrates."""
        points = self._points()
        since, until = self._began + 1, self._began + self.BEFORE_S - 1
        first, last = done_at(points, since), done_at(points, until)
        check(None not in (first, last), "the guest did not tell what it did")
        return (last - first) / (until - since)

    def per_second(self, switched):
        """(seconds since the guest ran at the destination, operations in the
        second that begins there), by the host's clock."""
        points = self._points()
        first, last = points[0][0] - switched, points[-1][0] - switched
        counts = [(at, done_at(points, at + switched))
                  for at in range(int(first) - 1, int(last) + 1)]
        return [(at, round(n1 - n0)) for (at, n0), (_, n1)
                in zip(counts, counts[1:]) if n0 is not None and n1 is not None]

    def _points(self):
        """(when, operations so far)"""
        if not self._job.running:
            self._job.wait()
        return [(at, int(line.split()[1]))
                for at, line in zip(self._job.times, self._job.lines)
                if line.startswith("done ")]


def done_at(points, at):
    """Operations at that time; None: not known."""
    for (t0, n0), (t1, n1) in zip(points, points[1:]):
        if t0 <= at <= t1 and t1 > t0:
            return n0 + (n1 - n0) * (at - t0) / (t1 - t0)
    return None


class KeyValueOver(KeyValue):
    """A working set 1.2 times as large as the main host's memory."""

    LOCAL_SHARE = 1.2


class KeyValuePaced(KeyValue):
    """With a third of the operations a second that there can be just before:
    what a client notices that doesn't ask for more than its server can do.
    Not more, since a host's speed may fall to a half within a minute."""

    SHARE = 1 / 3
    _operations = None

    def _load(self, guest, values):
        self._start(guest, values)
        self._operations = round(self.SHARE * self._rate_before())
        guest.run("killall kv-load")
        self._start(guest, values, self._operations)

    def result(self, switched, seconds):
        return {**super().result(switched, seconds),
                "kv_pace": self._operations}


LOADS = {"idle": Idle, "rapid-write": RapidWrite, "sort": Sort,
         "kv": KeyValue, "kv-over": KeyValueOver,
         "kv-paced": KeyValuePaced}
