#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: some three minutes each
# timeout: 1200
"""scripts/demo, of what is built: by virsh as it is, and with --qmp."""

import os
import re
import subprocess
import sys

from memxlib import e2e
from memxlib.wait import check


def test(t):
    for options in [], ["--qmp"]:
        done = subprocess.run(
            [sys.executable, os.path.join(e2e.TOP, "scripts/demo.py"),
             *options],
            capture_output=True, text=True, timeout=550, check=False)
        t.log(f"{options} -> {done.returncode}: {done.stdout}{done.stderr}")
        check(done.returncode == 0, f"it failed: {done.stderr[-1000:]}")
        # On one machine beside others, and across the move.
        right = len(re.findall("the checksum is right", done.stdout))
        check(right == 5, f"{right} checksums are right, not 5")
        check("from before the move until after it" in done.stdout,
              "its program had ended before the VM moved")
        check(("virsh migrate" in done.stdout) == (not options),
              f"it did not move the VM as told:\n{done.stdout}")
        check(re.search("tracker (rwp|idle|damon|sample): .", done.stdout),
              f"it does not name its tracker:\n{done.stdout}")
        check(options or re.search(r"[1-9]\d* MiB are on the servers",
                                   done.stdout),
              f"nothing went to the servers:\n{done.stdout}")
        t.say(" ".join(["demo", *options]))


e2e.main(test, 1150)
