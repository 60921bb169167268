#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kernels: 7.3
# kernels with --all: idle
# timeout: 900
# slow: another split migration, of memory that is remote in part
"""The split migration of test-split-migration.py, of memory that a
memory-backend-memx with a tracker has in part on a server already."""

import os
import runpy

os.environ["MEMX_LAB_SOURCE"] = "memx"
runpy.run_path(os.path.join(os.path.dirname(__file__),
                            "test-split-migration.py"), run_name="__main__")
