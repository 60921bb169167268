# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory cgroup of our own, of whichever version the machine has."""

import os

from .wait import Skip, wait_until


def _mounts(kind):
    with open("/proc/mounts", encoding="ascii", errors="replace") as mounts:
        for line in mounts:
            _, where, fstype, options = line.split()[:4]
            if fstype == kind:
                yield where, options.split(",")


def _own_v2_path():
    with open("/proc/self/cgroup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("0::"):
                return line[3:].strip()
    return "/"


class MemoryCgroup:
    """Limits memory; swap is not available unless swap=True."""

    def __init__(self, name, limit_bytes, swap=False):
        self._limit_bytes = limit_bytes
        self._swap = swap
        if not self._make_v1(name) and not self._make_v2(name):
            raise Skip("no memory cgroup can be made here (needs root and "
                       "the memory controller)")

    def _write(self, name, value):
        with open(os.path.join(self.path, name), "w",
                  encoding="ascii") as file:
            file.write(str(value))

    def _read(self, name):
        with open(os.path.join(self.path, name), encoding="ascii") as file:
            return file.read()

    def _make_v1(self, name):
        for where, options in _mounts("cgroup"):
            if "memory" in options:
                self.path = os.path.join(where, name)
                try:
                    os.makedirs(self.path, exist_ok=True)
                    self._write("memory.limit_in_bytes", self._limit_bytes)
                    if not self._swap:
                        self._write("memory.swappiness", 0)
                    self.version = 1
                    return True
                except OSError:
                    self._remove_directory()
        return False

    def _make_v2(self, name):
        for where, _ in _mounts("cgroup2"):
            parent = where + _own_v2_path()
            # The controller must be handed down; a cgroup with processes in
            # it cannot do so, its parent usually has.
            for base in (parent, os.path.dirname(parent), where):
                self.path = os.path.join(base, name)
                try:
                    os.makedirs(self.path, exist_ok=True)
                    self._write("memory.max", self._limit_bytes)
                    if not self._swap:
                        self._write("memory.swap.max", 0)
                    self.version = 2
                    return True
                except OSError:
                    self._remove_directory()
        return False

    def enter(self):
        """For a child between fork and exec."""
        self._write("cgroup.procs", os.getpid())

    @property
    def peak_bytes(self):
        return int(self._read("memory.max_usage_in_bytes"
                              if self.version == 1 else "memory.peak"))

    @property
    def kills(self):
        """Processes that were killed for memory."""
        text = self._read("memory.oom_control" if self.version == 1
                          else "memory.events")
        for line in text.splitlines():
            key, value = line.split()
            if key == "oom_kill":
                return int(value)
        return 0

    def _remove_directory(self):
        try:
            os.rmdir(self.path)
        except OSError:
            pass

    def remove(self):
        def gone():
            self._remove_directory()
            return not os.path.exists(self.path)
        wait_until(f"{self.path} can be removed", gone)
