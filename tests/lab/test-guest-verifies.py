#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kernels: 6.12
# kernels with --all: 7.3
# timeout: 1800
# slow: some minutes for each kernel, in an emulated host
"""Under KVM a guest with a quarter of its RAM local finds every byte as it
wrote it."""

from memxlib import e2e, lab
from memxlib.wait import check

SECONDS = 1740
lab.inside(cpus=1, seconds=SECONDS)


def test(t):
    vm = t.vm(size="192M", local="192M", servers=t.memservers(2), accel="kvm",
              memx={"chunk_size": "256K"})
    check(vm.qmp.command("query-kvm")["enabled"], "this is not KVM")
    t.say("booted")
    vm.set_local_size("48M")
    load = vm.guest.start("memverify --percent 60 --seconds 2 "
                          "--check-in-order")
    load.wait(SECONDS)
    backend = vm.backend()
    t.say(f"{backend['remote'] >> 20} MiB are remote, "
          f"{backend['faults']['remote']} faults")
    check(backend["remote"] > 48 << 20, "hardly anything went remote")
    check(backend["faults"]["remote"] > 0, "nothing came back")
    check(backend["local"] <= backend["local-size"],
          "more is local than local-size allows")
    vm.check_never_stopped()
    check(vm.quit() == 0, "QEMU did not end well")


e2e.main(test, SECONDS)
