#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/bench-tracking compares trackers with: the accesses of its
patterns are the same each time, and no policy needs fewer fetches for them
than Belady's optimum."""

import os
import subprocess
import sys

from memxlib import e2e
from memxlib.wait import check

sys.path.insert(0, os.path.join(e2e.TOP, "scripts"))
# pylint: disable=wrong-import-position
from tracklib import plan  # noqa: E402
from tracklib.figures import Trace, full  # noqa: E402
from tracklib.policies import POLICIES, simulate  # noqa: E402


def trace(t, pattern, percent):
    words = plan.command(pattern, percent, 1)
    program = t.guest_file(words[0])
    printed = [subprocess.run([program, *words[1:], "--print"], check=True,
                              stdout=subprocess.PIPE, text=True).stdout
               for _ in range(2)]
    check(printed[0] == printed[1], f"{pattern} differs from itself")
    return Trace(printed[0])


def brute_force(chunks, capacity):
    """The fewest fetches that are possible, by trying all victims."""
    states = {frozenset(): 0}
    for chunk in chunks:
        found = {}
        for local, fetches in states.items():
            for after, cost in successors(local, chunk, capacity):
                total = fetches + cost
                found[after] = min(found.get(after, total), total)
        states = found
    return min(states.values())


def successors(local, chunk, capacity):
    if chunk in local:
        return [(local, 0)]
    if len(local) < capacity:
        return [(local | {chunk}, 1)]
    return [(local - {victim} | {chunk}, 1) for victim in local]


def test(t):
    for percent in plan.PERCENTS:
        for pattern in plan.PATTERNS:
            one = trace(t, pattern, percent)
            words = plan.options(pattern, percent, 1)
            check(len(one.chunks) == words["count"], "accesses are missing")
            check(set(one.chunks) <= set(range(words["chunks"])),
                  "a chunk that is not there")
            check(sorted(one.places) == list(range(words["chunks"])),
                  "ranks have no places")
            capacity = plan.local_chunks(percent)
            misses = {name: simulate(policy(capacity, full(one)), full(one), 0)
                      for name, policy in POLICIES.items()}
            t.say(f"{percent} % {pattern}: {misses}")
            check(min(misses.values()) == misses["belady"],
                  f"something is better than the optimum: {misses}")
    short = trace(t, "zipf", 50).chunks[:40]
    short = [chunk % 7 for chunk in short]
    check(simulate(POLICIES["belady"](3, short), short, 0)
          == brute_force(short, 3), "the optimum is not the optimum")


e2e.main(test)
