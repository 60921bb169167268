#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kernels: 6.12
# timeout: 1200
# slow: libvirt and a VM in an emulated host
"""Under KVM a VM whose memory server does not answer is stopped, for which
virsh tells the reason, and goes on when it does."""

import subprocess

from memxlib import hosts, lab
from memxlib.domain import Domain, memx_backing
from memxlib.wait import wait_until

SECONDS = 1140
lab.inside(memory_mib=3072, cpus=1, seconds=SECONDS)


def test(t):
    subprocess.run(["modprobe", "--all", "bridge", "veth"], check=True)
    network = hosts.Network(t, kvm=True, libvirt=False)
    host = network.host1
    host.start_libvirt()
    host.define_key()
    t.say("libvirt is up")
    server = network.memserver("mem1")
    domain = Domain(host, size="192M", cpus=1, backing=memx_backing(
        "64M", [server], more="<timeout seconds='3'/>"))
    # Why QEMU ended, should it.
    host.start_virsh("qemu-monitor-event", "--loop", "--pretty")
    t.say("booted")
    load = domain.guest.load("--percent 40")
    load.wait_progress()

    server.pause()
    wait_until("the VM is stopped, and virsh knows why", lambda:
               domain.state("--reason") == "paused (I/O error)", 120)
    t.say("stopped")
    server.resume()
    wait_until("the VM runs", lambda: domain.state() == "running", 120)
    load.wait_progress()    # each page it reads is compared


hosts.main(test, SECONDS)
