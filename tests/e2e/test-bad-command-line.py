#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot work is refused at the start: a message that says what and
where, exit status 1, and nothing left on the servers."""

import re

from memxlib import e2e
from memxlib.memserver import free_port
from memxlib.vm import memx_object
from memxlib.wait import Failure, check


def cases(server):
    def memx(size="256M", local="64M", servers=(server,), **options):
        return ["-m", "256M", "-machine", "memory-backend=pc.ram", "-object",
                memx_object("pc.ram", size, local, servers, **options)]

    nobody = f"127.0.0.1:{free_port()}"
    yield "local-size", memx(local="512M")
    yield "local-size", memx(local="1M")
    yield "local-size", memx(local="67108865")
    yield "size", memx(size="268435457")
    yield "servers", memx(servers=())
    yield "server.*127.0.0.1", memx(servers=["127.0.0.1"])
    yield "127.0.0.1:99999", memx(servers=["127.0.0.1:99999"])
    yield "server", memx(servers=[""])
    yield nobody, memx(servers=[nobody])
    yield nobody, memx(servers=[server, nobody])
    yield f"{server.address}.*(twice|duplicate)", memx(servers=[server] * 2)
    yield "chunk-size", memx(chunk_size="1000000")
    yield "chunk-size", memx(chunk_size="4K")
    yield "server-timeout", memx(server_timeout=0)
    yield "keep-copies", memx(keep_copies="sometimes")
    yield "key-secret.*nokey", memx(key_secret="nokey")
    yield "share", memx(share="on")
    yield "prealloc", memx(prealloc="on")
    yield "mlock|mem-lock", memx() + ["-overcommit", "mem-lock=on"]


def test(t):
    server = t.memserver()
    failures = []
    for pattern, args in cases(server):
        try:
            status, output = t.run_qemu(*args)
            check(status == 1, f"exit status {status}, output: {output}")
            check(re.search(pattern, output),
                  f"no word of '{pattern}': {output}")
        except Failure as failure:
            failures.append(f"{' '.join(args[4:])}: {failure}")
    check(not failures, "\n".join(failures))
    check(server.spaces() == [], "a space was left behind")


e2e.main(test)
