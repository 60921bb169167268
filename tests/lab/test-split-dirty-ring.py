#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kernels: 7.3
# timeout: 900
# slow: another split migration, with KVM's dirty ring
"""The split migration of test-split-migration.py, with KVM's dirty ring in
the place of its bitmap."""

import os
import runpy

os.environ["MEMX_LAB_ACCEL"] = "kvm,dirty-ring-size=4096"
runpy.run_path(os.path.join(os.path.dirname(__file__),
                            "test-split-migration.py"), run_name="__main__")
