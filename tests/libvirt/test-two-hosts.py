#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/two-hosts: what docs/libvirt.md tells one to type works in it, its
status is the command's, and killed in any way it leaves nothing behind."""

import os
import signal
import subprocess

from memxlib import e2e
from memxlib.process import Child
from memxlib.wait import check, wait_until

TWO_HOSTS = os.path.join(e2e.TOP, "scripts/two-hosts")
SPLIT = """
set -e
virsh start demo
virsh migrate --live --verbose demo qemu+tcp://host2/system \
    --split-migration --split-hosts mem1:7701,mem2:7701 \
    --split-local-size 128MiB --split-secret $KEY
on host2 virsh domstats --memx demo
on mem1 memxctl status
exit 7
"""
MARK = "memx-two-hosts-test"


def marked():
    """Processes with our mark in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if f"{MARK}={os.getpid()}".encode() in file.read():
                    found.append(int(pid))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test(t):
    done = subprocess.run(
        [TWO_HOSTS, "--memory", "256M", "bash", "-c", SPLIT],
        capture_output=True, text=True, timeout=200, check=False)
    t.log(f"{done.returncode}: {done.stdout}\n{done.stderr}")
    check(done.returncode == 7, f"status {done.returncode}: {done.stderr}")
    check("memx.remote=" in done.stdout, f"it says: {done.stdout}")
    t.say("did what it was told")

    for number in signal.SIGINT, signal.SIGKILL:
        child = Child("two-hosts", [
            TWO_HOSTS, "bash", "-c", "virsh start demo; echo up; sleep 600"],
            t.log_path(f"{number.name}.log"),
            # Files that a killed program made go with ours.
            env={**os.environ, MARK: str(os.getpid()),
                 "TMPDIR": t.socket_dir})
        t.cleanup(child.end)
        child.wait_output("^up$", 120)
        check(len(marked()) > 5, "its processes are not to be found")
        child.signal(number)
        child.wait_exit(30)
        wait_until("all of its processes are gone", lambda: not marked(), 30)
        t.say(f"{number.name} leaves nothing")


e2e.main(test, 290)
