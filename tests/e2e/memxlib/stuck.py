# SPDX-License-Identifier: GPL-2.0-or-later
"""Who waits for what: of a VM that is still there when its test has failed."""

import glob


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        return f"{error}\n"


def _faults(pid):
    """Of each userfaultfd: faults nobody has read, and those not woken."""
    for info in glob.glob(f"/proc/{pid}/fdinfo/*"):
        text = _read(info)
        if "pending:" in text and "total:" in text:
            yield f"{info}: {' '.join(text.split())}"


def _threads(pid):
    for task in sorted(glob.glob(f"/proc/{pid}/task/*")):
        stack = [line.split()[-1] for line in
                 _read(f"{task}/stack").splitlines()[:6] if line]
        yield f"{task} {_read(f'{task}/comm').strip()}: {' '.join(stack)}"


def _fault_workers():
    """KVM's threads that fetch a page while the guest does something else."""
    for stack in glob.glob("/proc/[0-9]*/stack"):
        text = _read(stack)
        if "async_pf" in text:
            yield f"{stack}: {' '.join(text.split())}"


def lines(pid):
    yield from _faults(pid)
    yield from _threads(pid)
    yield from _fault_workers()
