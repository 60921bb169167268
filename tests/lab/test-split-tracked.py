#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kernels: 7.3
# kernels with --all: idle
# timeout: 900
# slow: another split migration, with a memx-tracker at the source
"""The split migration of test-split-migration.py, of memory that a memx-tracker
watches: what marks pages for it, and KVM's dirty log, leave each other alone."""

import os
import runpy

os.environ["MEMX_LAB_SOURCE"] = "tracked"
runpy.run_path(os.path.join(os.path.dirname(__file__),
                            "test-split-migration.py"), run_name="__main__")
