#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""memverify sees a single wrong word, and tells zeros, lost writes and
misplaced pages apart: the tests that rely on it can fail."""

import os
import re
import signal
import sys

from memxlib import e2e
from memxlib.process import Child
from memxlib.wait import Failure, check, wait_until

PAGE = 4096
PAGES = 8192


def find_pages(pid, memory):
    """Where its page 0 is.  The largest mapping holds the pages, and more
    where the kernel has merged it with a neighbour: the pages say which
    they are."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps:
        spans = [re.match(r"(\w+)-(\w+) rw", line) for line in maps]
    spans = [[int(x, 16) for x in m.groups()] for m in spans if m]
    start, end = max(spans, key=lambda span: span[1] - span[0])
    for base in range(start, end - PAGES * PAGE + 1, PAGE):
        words = [os.pread(memory.fileno(), 8, base + page * PAGE)
                 for page in (1, PAGES - 1)]
        if [int.from_bytes(w, sys.byteorder) for w in words] == [1, PAGES - 1]:
            return base
    raise Failure(f"no {PAGES} pages at {start:x}-{end:x}")


class Victim:
    """A memverify whose memory we can reach, stopped.  Its last page is
    rewritten a few times per second, so hardly while it is stopped."""

    def __init__(self, t):
        self.child = Child(
            "memverify", [t.guest_file("memverify"), "--mbytes", "32",
                          "--seconds", "60", "--hot-percent", "1"],
            t.log_path("memverify.log"))
        t.cleanup(self.child.end)
        self.child.wait_output("^progress .* rewritten=[1-9]")
        self.child.pause()
        self.memory = open(f"/proc/{self.child.pid}/mem", "r+b", buffering=0)
        t.cleanup(self.memory.close)
        self.base = find_pages(self.child.pid, self.memory)

    def read(self, page):
        return os.pread(self.memory.fileno(), PAGE, self.base + page * PAGE)

    def write(self, page, data, offset=0):
        os.pwrite(self.memory.fileno(), data,
                  self.base + page * PAGE + offset)

    def expect(self, what):
        self.child.signal(signal.SIGTERM)
        self.child.resume()
        check(self.child.wait_exit(30) == 1, f"{what}: not noticed")
        self.child.wait_output(f"^MISMATCH .* holds: {what}")

    def run_until_changed(self, page, data):
        self.child.resume()
        wait_until(f"page {page} is rewritten",
                   lambda: self.read(page)[8:16] != data[8:16])
        self.child.pause()


def test(t):
    last = PAGES - 1

    victim = Victim(t)
    victim.write(last, bytes(PAGE))
    victim.expect("all zeros")

    victim = Victim(t)
    victim.write(last, b"\x55", 2049)
    victim.expect("neither zeros nor a page of ours")

    victim = Victim(t)
    victim.write(last, victim.read(last - 7))
    victim.expect(f"page {last - 7} generation")

    victim = Victim(t)
    old = victim.read(last)
    victim.run_until_changed(last, old)
    victim.write(last, old)
    victim.expect("older generation")


e2e.main(test)
