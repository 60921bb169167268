#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM without memx moves as it always did, by virsh and from daemon to
daemon, while its guest verifies its memory; QEMU is nobody special."""

from memxlib import hosts
from memxlib.domain import Domain
from memxlib.wait import check


def check_unprivileged(network, domain):
    with open(f"/proc/{domain.qemu_pid()}/status", encoding="ascii") as lines:
        status = dict(line.split(":", 1) for line in lines)
    if network.qemu_user != "+0":
        check(status["Uid"].split() == [network.qemu_user[1:]] * 4,
              f"QEMU runs as {status['Uid']}")
        check(int(status["CapEff"], 16) == 0,
              f"QEMU has capabilities {status['CapEff']}")
    check(status["Seccomp"].strip() == "2", "QEMU has no seccomp filter")


def test(t):
    network = hosts.Network(t)
    domain = Domain(network.host1, size="192M")
    check_unprivileged(network, domain)
    load = domain.guest.load("--percent 50")
    domain.migrate(network.host2)
    t.say("moved")
    load.wait_progress()
    domain.migrate(network.host1, "--p2p")
    t.say("and back, from daemon to daemon")
    load.wait_progress()
    load.finish()


hosts.main(test)
