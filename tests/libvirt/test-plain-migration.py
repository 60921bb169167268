#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: a VM that knows nothing of memx
"""A VM without memx moves as it always did, by virsh and from daemon to
daemon, while its guest verifies its memory."""

from memxlib import hosts
from memxlib.domain import Domain


def test(t):
    network = hosts.Network(t)
    domain = Domain(network.host1, size="192M")
    load = domain.guest.load("--percent 50")
    domain.migrate(network.host2)
    t.say("moved")
    load.wait_progress()
    domain.migrate(network.host1, "--p2p")
    t.say("and back, from daemon to daemon")
    load.wait_progress()
    load.finish()


hosts.main(test)
