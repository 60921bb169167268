#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 3600
# slow: half an hour; test-split-failures.py has the most telling dozen
"""The failure table of docs/split-migration.md with a Linux guest: each row
at each moment."""

from memxlib import e2e, split_failures


def test(t):
    split_failures.run_cases(t, split_failures.ALL)


e2e.main(test, seconds=3580)
