#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: what is special of it is little
"""A split migration with TLS on the main stream: refused as it is, and done
with --split-insecure, which leaves the rest of the memory in clear."""

import os

from memxlib import hosts
from memxlib.domain import Domain, split_options
from memxlib.wait import check

SIZE, LOCAL = "256M", "96M"
FOLDER = "/etc/pki/qemu"


def make_certificates(host, names):
    """An authority's, and one for a server of each of these names, which
    serves as each one's own.  Into a folder there."""
    def openssl(*words):
        host.run("openssl", *words)
    key, authority = f"{FOLDER}/ca-key.pem", f"{FOLDER}/ca-cert.pem"
    host.run("mkdir", "-p", FOLDER)
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl(*new, "-subj", "/CN=authority of a test", "-keyout", key,
            "-out", authority)
    openssl(*new, "-subj", "/CN=hosts of a test", "-addext",
            "subjectAltName=" + ",".join(f"DNS:{n}" for n in names),
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", authority, "-CAkey", key, "-keyout",
            f"{FOLDER}/server-key.pem", "-out", f"{FOLDER}/server-cert.pem")
    for what in "key", "cert":
        host.run("cp", f"{FOLDER}/server-{what}.pem",
                 f"{FOLDER}/client-{what}.pem")
    host.run("chmod", "-R", "a+rX", FOLDER)


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    source, dest = network.host1, network.host2
    make_certificates(source, [source.name, dest.name])
    dest.run("mkdir", "-p", os.path.dirname(FOLDER))
    dest.run("cp", "-rp", source.path(FOLDER), FOLDER)
    domain = Domain(source, size=SIZE)
    load = domain.guest.load("--percent 60 --write-percent 10")

    tls = [*split_options(servers, LOCAL), "--tls"]
    domain.migration_refused(dest, "TLS is refused", *tls)
    load.wait_progress()
    t.say("refused")

    virsh = domain.start_migration(dest, *tls, "--split-insecure")
    domain.wait_phase(virsh, "warm-up", "transfer")
    check(domain.qmp("query-migrate-parameters")["tls-creds"],
          "the main stream has no TLS")
    virsh.succeed()
    domain.arrived(dest)
    check(domain.backend()["remote"] > 0, "nothing is remote")
    load.wait_progress()
    t.say("moved")
    load.finish()


hosts.main(test)
