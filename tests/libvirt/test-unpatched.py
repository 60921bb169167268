#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: builds libvirt once more, without our patches
# timeout: 1800
"""virsh and virtqemud without our patches, on one side or the other: what
they don't know is refused, the VM goes on, and all else works."""

import os
import subprocess

from memxlib import e2e, hosts
from memxlib.domain import Domain, split_options
from memxlib.wait import Failure, check

SIZE, LOCAL = "192M", "64M"


def build_pristine(t):
    t.say("building libvirt without our patches")
    env = {k: v for k, v in os.environ.items() if k != "MEMX_BUILD_LOCKED"}
    with open(t.log_path("build.log"), "wb") as log:
        done = subprocess.run(
            [os.path.join(e2e.TOP, "scripts/build-libvirt"), "--pristine"],
            stdout=log, stderr=log, env=env, check=False)
    if done.returncode != 0:
        raise Failure("scripts/build-libvirt --pristine failed; see "
                      + t.log_path("build.log"))


def pristine_virsh(host, *words):
    return host.run(os.path.join(e2e.BUILD, "libvirt-pristine/tools/virsh"),
                    *words, succeed=False)


def test(t):
    build_pristine(t)
    network = hosts.Network(t, libvirt=False)
    servers = network.memservers()
    network.host1.start_libvirt()
    network.host2.start_libvirt("libvirt-pristine")
    for host in network.host1, network.host2:
        host.define_key()
    split = split_options(servers, LOCAL)
    domain = Domain(network.host1, size=SIZE)
    load = domain.guest.load("--percent 50")

    unknown = "unsupported (flags|parameter)|split"
    domain.migration_refused(network.host2, unknown, *split)
    domain.migration_refused(network.host2, unknown, "--p2p", *split)
    check(domain.state() == "running", "the VM does not run")
    load.wait_progress()
    t.say("refused by a daemon that does not know it")

    domain.migrate(network.host2)
    load.wait_progress()
    t.say("moved without it")
    domain.migration_refused(network.host1, "unsupported option|split",
                             *split)
    output = domain.host.run(
        network.host1.program("virsh"), "migrate", "--live", *split,
        domain.name, network.host1.uri, succeed=False)
    check("unsupported" in output, f"refused, but with: {output}")
    output = pristine_virsh(network.host1, "migrate", "--live", *split,
                            domain.name, network.host2.uri)
    check("--split-" in output, f"refused, but with: {output}")
    check(domain.state() == "running", "the VM does not run")
    t.say("refused by a source, and by a virsh, that does not know it")
    domain.migrate(network.host1)
    load.wait_progress()
    load.finish()


hosts.main(test, 1700)
