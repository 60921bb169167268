#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU warns at its start when the host swaps, and query-memx, info memx and
memxctl doctor say so, too."""

import os
import subprocess

from memxlib import e2e
from memxlib.wait import Skip, check

SWAP_BYTES = 1 << 20


def make_swap(t):
    # Its name tells scripts/leaks.py whose it is.
    path = t.log_path(f"memx-swap-{os.getpid()}")
    with open(path, "wb") as file:
        os.chmod(path, 0o600)
        t.cleanup(os.unlink, path)
        file.write(bytes(SWAP_BYTES))
        os.fsync(file.fileno())
    for command in (["mkswap", path], ["swapon", "-p", "0", path]):
        try:
            done = subprocess.run(command, capture_output=True, text=True,
                                  check=False)
        except FileNotFoundError as missing:
            raise Skip(f"{command[0]} is missing") from missing
        if done.returncode != 0:
            raise Skip(f"{command[0]}: {done.stderr.strip()}")
    t.cleanup(subprocess.run, ["swapoff", path])


def host_swaps():
    with open("/proc/swaps", encoding="utf-8") as swaps:
        return len(swaps.readlines()) > 1


def test(t):
    server = t.memserver()
    if not host_swaps():
        vm = t.vm(size="128M", local="64M", servers=[server], name="before",
                  wait_boot=False)
        check(not vm.backend()["host-swap"], "query-memx sees swap")
        check("swaps" not in vm.process.output() +
              vm.qmp.hmp("info memx"), "a warning of swap that is off")
        vm.end()
        make_swap(t)
    vm = t.vm(size="128M", local="64M", servers=[server], wait_boot=False)
    warning = vm.process.output()
    check("'pc.ram': this host swaps" in warning and "switch" in warning,
          f"QEMU does not warn: {warning}")
    check(vm.backend()["host-swap"], "query-memx does not tell of swap")
    check("the host swaps" in vm.qmp.hmp("info memx"),
          "info memx does not tell of swap")
    doctor = subprocess.run(
        [t.binary("memxctl"), "doctor", server.address], text=True,
        capture_output=True, check=False).stdout
    check(any(line.startswith("warn") and " swap " in line
              for line in doctor.splitlines()),
          f"memxctl doctor does not warn: {doctor}")


e2e.main(test)
