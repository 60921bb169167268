# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests that run in virtual hosts (see docs/lab.md).

    from memxlib import lab
    lab.inside(hosts=2)

runs the test again, in the hosts, and does not return but there.  What the
hosts tell each other are small files in the folder that they share.
"""

import json
import os
import sys

from .wait import wait_until

TOP = os.path.realpath(os.path.join(os.path.dirname(__file__), "../../.."))


def inside(hosts=1, memory_mib=2048, cpus=2, seconds=240):
    """seconds: for all of it, the boot of the hosts included.  (Waits of
    the tests are stretched, see wait.PATIENCE.)"""
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    if "LAB_HOST" in os.environ:
        os.environ["MEMX_LOGS"] = shared(f"host{number()}")
        return
    kernel = os.environ.get("MEMX_LAB_KERNEL", "7.3")
    logs = os.path.join(TOP, "build/lab-logs", f"{name}-{kernel}")
    os.makedirs(logs, exist_ok=True)
    for left in os.listdir(logs):
        if left.endswith(".told"):
            os.unlink(os.path.join(logs, left))
    lab = os.path.join(TOP, "scripts/lab")
    os.execv(lab, [lab, "run", f"--kernel={kernel}", f"--hosts={hosts}",
                   f"--memory={memory_mib}", f"--cpus={cpus}",
                   f"--timeout={seconds}", f"--scratch={logs}", *sys.argv])


def number():
    return int(os.environ["LAB_HOST"])


def address(host=None):
    return os.environ["LAB_NETWORK"] + str(host or number())


def shared(name):
    return os.path.join(os.environ["LAB_SCRATCH"], name)


def tell(name, value=None):
    """To whoever hears that name."""
    path = shared(f"{name}.told")
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(f"{path}.new", path)


def hear(name, seconds=120):
    """Waits until it was told; returns the value."""
    path = shared(f"{name}.told")
    wait_until(f"a host tells '{name}'", lambda: os.path.exists(path),
               seconds)
    with open(path, encoding="utf-8") as file:
        return json.load(file)
