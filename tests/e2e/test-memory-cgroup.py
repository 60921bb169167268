#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 440
"""QEMU in a memory cgroup of local-size + 256 MiB, without swap, is never
killed for memory, whatever the guest does."""

from memxlib import e2e
from memxlib.guest import IN_ORDER
from memxlib.wait import check

LOCAL_MIB = 128


def test(t):
    cgroup = t.memory_cgroup((LOCAL_MIB + 256) << 20)
    vm = t.vm(size="1G", local=f"{LOCAL_MIB}M",
              servers=t.memservers(2, capacity="2G"),
              accel="tcg,thread=multi,tb-size=64", before_exec=cgroup.enter)
    print(vm.guest.run("memverify --percent 80 --rounds 0 --threads 4 "
                       + IN_ORDER, 200).splitlines()[-1])
    backend = vm.backend()
    check(backend["local"] <= backend["local-size"] * 1.02,
          "more is local than local-size allows")
    vm.guest.run(f"memverify --percent 50 --rounds 1 {IN_ORDER}", 200)
    check(cgroup.kills == 0, "the cgroup killed a process")
    check(vm.process.running, "QEMU is gone")
    t.say(f"peak: {cgroup.peak_bytes >> 20} MiB")


e2e.main(test, seconds=400)
