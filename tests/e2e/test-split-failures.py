#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
"""A dozen cells of the failure table of docs/split-migration.md, with a Linux
guest; test-split-failures-all.py has the others."""

import sys

from memxlib import e2e, split_failures

NAMES = [
    "dest-killed/first-round", "dest-killed/committed",
    "source-killed/first-round", "source-killed/before-commit",
    "server-killed/later-round", "server-killed/committed",
    "server-stopped/first-round", "main-link-cut/first-round",
    "server-link-cut/first-round", "arbiter-unreachable/before-commit",
    "cancel/later-round", "server-full/setup",
]


def test(t):
    names = [name for name in sys.argv[1:] if "/" in name]
    split_failures.run_cases(t, names or NAMES)


e2e.main(test, seconds=880)
