# SPDX-License-Identifier: GPL-2.0-or-later
"""This machine's memory and CPUs, as far as a run depends on them."""

import mmap
import os
import time

MIB = 1 << 20


def available_mib():
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    return 0


def warm(size):
    """Memory that a virtual machine's host never backed before costs 10 us
    more a page: whoever comes first would pay for all."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                     | mmap.MAP_POPULATE)
    area.close()


def swapped_mib():
    with open("/proc/swaps", encoding="utf-8") as lines:
        return sum(int(line.split()[3]) for line in
                   lines.readlines()[1:]) // 1024


class CpuTime:
    """How many CPUs others than we and our children kept busy."""

    def __init__(self):
        self._began = time.monotonic()
        self._busy, self._ours = self._read()

    @staticmethod
    def _read():
        with open("/proc/stat", encoding="ascii") as stat:
            fields = [int(text) for text in stat.readline().split()[1:9]]
        idle = fields[3] + fields[4]
        own = os.times()
        return ((sum(fields) - idle) / os.sysconf("SC_CLK_TCK"),
                own.user + own.system + own.children_user
                + own.children_system)

    def others(self):
        """Our children must have ended."""
        busy, ours = self._read()
        seconds = time.monotonic() - self._began
        return round(max(0, busy - self._busy - ours + self._ours) / seconds,
                     2)
