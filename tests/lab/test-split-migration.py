#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kernels: 7.3
# kernels with --all: 6.12
# timeout: 900
# slow: some minutes for each kernel, in an emulated host
"""A KVM guest with ordinary RAM moves to another host that has less memory
than it has, the rest to a server on each, while it writes and verifies."""

import os

from memxlib import e2e, lab
from memxlib.guest import Load
from memxlib.migration import Migration
from memxlib.wait import check, wait_until

SECONDS = 840
SIZE, LOCAL = "192M", "96M"
MEMVERIFY = ("memverify --percent 50 --write-percent 10 --check-in-order "
             "--seconds 3600")
# Of the source: ordinary RAM, what a memx-tracker sees of it, or memx RAM with
# such a tracker of its own.
SOURCE = os.environ.get("MEMX_LAB_SOURCE", "plain")
TRACKERS = {"7.3": "rwp", "idle": "idle"}
lab.inside(hosts=2, cpus=1, seconds=SECONDS)


def key(t):
    """Servers that are not on loopback have one."""
    path = t.log_path("key")
    with open(path, "w", encoding="ascii") as file:
        os.chmod(path, 0o600)
        file.write("a key of a test, of no use elsewhere")
    return path, ["-object", f"secret,id=key,file={path}"]


def source_vm(t, server, accel, secret):
    options = {"tracker": TRACKERS.get(os.environ["LAB_KERNEL"]),
               "tracker-period": 1000, "tracker-cpu": 20}
    if SOURCE == "memx":
        return t.vm(size=SIZE, local="144M", servers=[server], accel=accel,
                    extra=secret, name="source",
                    memx={**options, "key_secret": "key"})
    if SOURCE == "tracked":
        values = ",".join(f"{key}={value}" for key, value in options.items())
        secret = [*secret, "-object", f"memx-tracker,id=t0,{values}"]
    return t.vm(size=SIZE, accel=accel, extra=secret, name="source")


def tracking(vm):
    """What the tracker knows of the source's memory."""
    if SOURCE == "memx":
        return vm.backend()["tracking"]
    return vm.qmp.command("query-memx-tracker")[0]["tracking"]


def await_history(t, vm):
    """Some periods while the guest writes and reads."""
    before = tracking(vm)["periods"]
    wait_until("the tracker has seen three periods",
               lambda: tracking(vm)["periods"] >= before + 3, 240)
    seen = tracking(vm)
    check(seen["tracker"] == TRACKERS[os.environ["LAB_KERNEL"]],
          f"the tracker is {seen['tracker']}")
    t.say(f"tracker {seen['tracker']}, {seen['periods']} periods")


def source(t, server, accel, secret):
    vm = source_vm(t, server, accel, secret)
    t.say("the source runs its guest")
    job = vm.guest.start(MEMVERIFY)
    job.wait_line("^phase visit", 240)
    if SOURCE != "plain":
        await_history(t, vm)
    listening = lab.hear("destination", 240)
    migration = Migration(vm, None, [server.address, listening["server"]],
                          LOCAL, key_secret="key")
    migration.start(listening["uri"])
    split = migration.finish(240)["split"]
    t.say(f"moved: {split['main'] >> 20} MiB to the main host, "
          f"{split['sent'] >> 20} MiB to servers")
    check(split["main"] <= split["main-limit"], "more than its limit went to "
          f"the main host: {split}")
    check(all(s["sent"] > 0 for s in split["servers"]) or SOURCE == "memx",
          f"a server got nothing: {split}")
    check(vm.quit() == 0, "the source did not end well")
    lab.tell("source gone")
    lab.hear("verified", 240)


def destination(t, server, accel, secret):
    vm = t.vm(size=SIZE, local=LOCAL, accel=accel, extra=secret, name="dest",
              memx={"key_secret": "key"}, incoming=True)
    job = vm.guest.adopt(1, MEMVERIFY)
    migration = Migration(None, vm, ["of the source's choice"], LOCAL,
                          host=lab.address())
    lab.tell("destination", {"uri": migration.listen(),
                             "server": server.address})
    lab.hear("source gone", 300)
    check(vm.status() == "running", f"the VM is {vm.status()}")
    load = Load(vm.guest, job)
    load.wait_progress(120)
    load.finish(240)
    backend = vm.backend()
    t.say(f"verified; {backend['remote'] >> 20} MiB are remote, "
          f"{backend['faults']['remote']} faults")
    check(backend["local"] <= backend["local-size"],
          f"{backend['local']} bytes are local")
    check(backend["faults"]["remote"] > 0, "nothing came back")
    vm.check_never_stopped()
    check(vm.quit() == 0, "QEMU did not end well")
    lab.tell("verified")


def test(t):
    path, secret = key(t)
    server = t.memserver(f"server{lab.number()}", host=lab.address(),
                         key_file=path)
    role = source if lab.number() == 1 else destination
    role(t, server, os.environ.get("MEMX_LAB_ACCEL", "kvm"), secret)


e2e.main(test, SECONDS)
