# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to choose what is evicted, simulated on a trace of chunks.

Each has a capacity in chunks; access(chunk) says whether it was local, and
makes it so.  `local` is what is.
"""

import heapq
import random
from collections import OrderedDict


class Random:
    def __init__(self, capacity, _trace):
        self.capacity = capacity
        self._order, self._index = [], {}
        self._random = random.Random(1)

    @property
    def local(self):
        return self._index.keys()

    def access(self, chunk):
        if chunk in self._index:
            return True
        at = len(self._order)
        if at == self.capacity:
            at = self._random.randrange(at)
            del self._index[self._order[at]]
            self._order[at] = chunk
        else:
            self._order.append(chunk)
        self._index[chunk] = at
        return False


class Fifo:
    recency = False

    def __init__(self, capacity, _trace):
        self.capacity = capacity
        self.local = OrderedDict()

    def access(self, chunk):
        hit = chunk in self.local
        if hit and self.recency:
            self.local.move_to_end(chunk)
        elif not hit:
            if len(self.local) == self.capacity:
                self.local.popitem(last=False)
            self.local[chunk] = True
        return hit


class Lru(Fifo):
    recency = True


class Belady:
    """The optimum (Belady 1966): knows the trace, and evicts what will be
    wanted last."""

    def __init__(self, capacity, trace):
        self.capacity = capacity
        self.local = {}     # chunk: when it is wanted next
        self._heap = []     # (-when, chunk), some of them outdated
        self._now = 0
        self._next = [0] * len(trace)
        seen = {}
        for at in range(len(trace) - 1, -1, -1):
            self._next[at] = seen.get(trace[at], len(trace))
            seen[trace[at]] = at

    def access(self, chunk):
        hit = chunk in self.local
        if not hit and len(self.local) == self.capacity:
            while True:
                when, victim = heapq.heappop(self._heap)
                if self.local.get(victim) == -when:
                    del self.local[victim]
                    break
        when = self._next[self._now]
        self._now += 1
        self.local[chunk] = when
        heapq.heappush(self._heap, (-when, chunk))
        return hit


class Best:
    """The best that can be had without knowing the future where accesses are
    independent of each other and their probabilities are known (A0; Aho,
    Denning, Ullman 1971): the most probable chunks are local, and one place
    serves all others."""

    def __init__(self, capacity, _trace, by_probability=()):
        self._fixed = set(by_probability[:capacity - 1])
        self._other = None

    @property
    def local(self):
        return self._fixed | {self._other}

    def access(self, chunk):
        hit = chunk in self._fixed or chunk == self._other
        if not hit:
            self._other = chunk
        return hit


POLICIES = {"random": Random, "fifo": Fifo, "lru": Lru, "belady": Belady}


def simulate(policy, trace, first, at=None):
    """Misses of the accesses from the first one on.  at(i, local) is called
    before each of these."""
    misses = 0
    for i, chunk in enumerate(trace):
        if at and i >= first:
            at(i, policy.local)
        misses += not policy.access(chunk) and i >= first
    return misses
