# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting, always with a deadline; and how much there is time for."""

import os
import time

# How many times as long all may take: in a virtual host of scripts/lab
# everything is emulated, and beside other work at that.
PATIENCE = 6 if "LAB_HOST" in os.environ else 1

# run-tests --all: also what takes long and shows little more.
ALL = "MEMX_ALL" in os.environ


class Failure(AssertionError):
    """The tested thing did not do what the test is about."""


class Skip(Exception):
    """The machine lacks what the test needs."""


class Deadline:
    def __init__(self, seconds):
        self.seconds = seconds
        self._end = time.monotonic() + seconds * PATIENCE

    @property
    def left(self):
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self):
        return self.left == 0.0


def wait_until(what, predicate, seconds=30, interval=0.1):
    """Calls predicate until it returns something true, which is returned."""
    deadline = Deadline(seconds)
    while True:
        result = predicate()
        if result:
            return result
        if deadline.passed:
            raise Failure(f"not within {seconds} s: {what}")
        time.sleep(interval)


def check(condition, message):
    """An assertion that survives python -O and says what went wrong."""
    if not condition:
        raise Failure(message)


def stays(what, predicate, seconds):
    """For that long, predicate must be true whenever it is asked."""
    deadline = Deadline(seconds)
    while not deadline.passed:
        check(predicate(), f"no longer true: {what}")
        time.sleep(0.1)
