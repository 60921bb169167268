#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the fuzz targets' corpora: OUTPUT-DIRECTORY/TARGET/NAME.

Messages are made after docs/protocol.md, by no code of libmemx.
"""
import pathlib
import struct
import sys

HELLO, AUTH, OPEN, PING, FETCH = 1, 2, 3, 8, 16
STORE, COMPARE, DROP, RESERVE, CLOSE = 32, 33, 34, 35, 36
OFFER, RECLAIM, COMMIT, RESIGN = 37, 38, 39, 40
FULL, NOT_HELD = 7, 9
PAGE = 4096
ALL = (1 << 64) - 1
# What fuzz-tcp-client.c has in flight.
MASKS = (1, 0x8001, 0xff, 2)


def pages(mask):
    return bin(mask).count("1")


def request(opcode, request_id=1, group=0, mask=0, body=b"", payload=b""):
    return struct.pack("<4sHHQQQII", b"MEXQ", opcode, 0, request_id, group,
                       mask, len(body), len(payload)) + body + payload


def reply(opcode, request_id=1, mask=0, error=0, body=b"", payload=b""):
    return struct.pack("<4sHHQQQQQIIII", b"MEXP", opcode, error, request_id,
                       mask, 1000, 4000, 7, 500, len(body), len(payload),
                       0) + body + payload


def hello(least=1, highest=1, features=0):
    return struct.pack("<IIQ32sQ", least, highest, features, b"n" * 32, 0)


def welcome(flags=0):
    return struct.pack("<IIQ16s32sQ", 1, flags, 0, b"i" * 16, b"N" * 32, 0)


def open_space(lane=1, create=True, name=b"vm", size=1024, reserve=128):
    return struct.pack("<16s16sIIQQQ16s32s64s64s16sQQ", b"s" * 16, b"c" * 16,
                       lane, create, 0, size, reserve if create else 0,
                       b"S" * 16 if create else b"",
                       b"" if create else b"p" * 32, name, b"pc.ram",
                       b"u" * 16, 0, 0)


def heir(lane=1):
    opening = bytearray(open_space(lane, create=False))
    struct.pack_into("<I", opening, 36, 2)
    return bytes(opening[:256]) + b"e" * 16


def opened(size=1024, held=3):
    return struct.pack("<QQQQ", 0, size, 128, held)


def store(mask, request_id=1, group=0, fill=b"\x5a"):
    n = pages(mask)
    return request(STORE, request_id, group, mask, b"h" * 16 * n,
                   fill * PAGE * n)


def compare(mask, request_id=1):
    return request(COMPARE, request_id, 0, mask, b"h" * 16 * pages(mask))


def fetched(request_id, mask):
    return reply(FETCH, request_id, payload=b"\xa5" * PAGE * pages(mask))


def server_streams():
    """What a client sends to a server."""
    yield "ping", request(PING)
    yield "pipelined", b"".join(request(PING, i) for i in range(60))
    yield "store", store(3)
    yield "store-and-ping", store(1) + request(PING, 2)
    yield "compare", compare(ALL)
    yield "mixed", (request(FETCH, 1, 5, 1) + store(0x11, 2) +
                    compare(0xf, 3) + request(DROP, 4, 0, ALL) +
                    request(RESERVE, 5, 100) + request(CLOSE, 6))
    yield "half-a-store", store(3)[:5000]


def session_streams():
    """Whole sessions with a memserver that has no key."""
    start = request(HELLO, 1, body=hello()) + \
        request(OPEN, 2, body=open_space())
    yield "hello", request(HELLO, 1, body=hello())
    yield "ping", request(HELLO, 1, body=hello()) + request(PING, 2, 100)
    yield "auth", request(HELLO, 1, body=hello()) + \
        request(AUTH, 2, body=b"p" * 32)
    yield "attach", request(HELLO, 1, body=hello()) + \
        request(OPEN, 2, body=open_space(2, create=False))
    yield "create", start
    yield "store", start + store(3, 3) + request(FETCH, 4, 0, 3)
    yield "zero-pages", start + store(3, 3, fill=b"\0") + \
        request(FETCH, 4, 0, 1)
    yield "overwrite", start + store(7, 3) + store(0xe, 4, fill=b"\1") + \
        request(FETCH, 5, 0, 0xf)
    yield "beyond", start + store(1, 3, group=16) + store(1, 4, group=15)
    yield "compare", start + store(5, 3) + compare(7, 4)
    yield "drop", start + store(7, 3) + request(DROP, 4, 0, 5) + \
        request(DROP, 5, 0, 5) + request(FETCH, 6, 0, 2)
    yield "reserve", start + request(RESERVE, 3, 0) + \
        request(RESERVE, 4, 1 << 40) + request(RESERVE, 5, 1000)
    yield "close", start + store(1, 3) + request(CLOSE, 4) + \
        request(OPEN, 5, body=open_space()) + request(PING, 6)
    yield "half-a-store", start + store(7, 3)[:6000]
    offer = request(OFFER, 3, body=b"e" * 16 + b"h" * 16)
    yield "offer", start + offer + store(1, 4) + \
        request(RECLAIM, 5, body=b"e" * 16) + store(1, 6)
    yield "resign", start + offer + request(RESIGN, 4, body=b"e" * 16) + \
        request(RECLAIM, 5, body=b"e" * 16) + request(CLOSE, 6)
    yield "commit", start + offer + request(COMMIT, 4, body=b"e" * 16)
    # Of an heir, which has its lane.  Run with an odd length its space's
    # owner has resigned.
    commit = request(COMMIT, 2, body=b"e" * 16)
    yield "heir", request(FETCH, 1, 0, 1) + store(1) + commit + \
        store(3, 3) + request(FETCH, 4, 0, 3) + request(RESERVE, 5, 64)
    yield "heir-waits", compare(3) + request(DROP, 2, 0, 1) + \
        request(RECLAIM, 3, body=b"e" * 16) + request(PING, 4) + \
        request(COMMIT, 5, body=b"E" * 16)
    yield "heir-closes", request(CLOSE) + request(OPEN, 2, body=heir())
    yield "heir-closes-resigned", request(CLOSE) + request(PING, 2) + b"M"
    yield "heir-offers", commit + request(OFFER, 3, body=b"f" * 32) + \
        store(1, 4) + request(RESIGN, 5, body=b"f" * 16)


def client_streams():
    """Two bytes of plan, then what a server sends to a client."""
    fetches = [fetched(i + 1, mask) for i, mask in enumerate(MASKS)]
    handshake = [reply(HELLO, 1, body=welcome(1)),
                 reply(AUTH, 2, body=b"P" * 32),
                 reply(OPEN, 3, body=opened()), reply(PING, 4)]
    mixed = [reply(COMPARE, 1, 1), fetched(2, MASKS[1]), reply(DROP, 3),
             fetched(4, MASKS[3])]
    refused = [reply(FETCH, i + 1, error=NOT_HELD, mask=mask)
               for i, mask in enumerate(MASKS)]
    for step in range(8):
        yield f"fetch-{step}", bytes((0, step)) + b"".join(fetches)
        yield f"handshake-{step}", bytes((1, step)) + b"".join(handshake)
        yield f"mixed-{step}", bytes((2, step)) + b"".join(mixed)
        yield f"refused-{step}", bytes((0, step)) + b"".join(refused)
        yield f"half-refused-{step}", bytes((0, step)) + fetches[0] + \
            refused[1] + fetches[2] + refused[3]
        yield f"short-{step}", bytes((0, step)) + b"".join(fetches)[:-1]


def split_begin(chunk=1 << 20, size=(1 << 21) + 69 * PAGE, servers=2):
    hosts = [b"[2001:db8::%d]:7701" % i for i in range(servers)]
    body = struct.pack("<IIQQ16s16s16sI", 1, chunk, size,
                       min(size, 1 << 20), b"s" * 16, b"h" * 16, b"k" * 16,
                       servers)
    for host in hosts:
        body += struct.pack(f"<H{len(host)}s16s16sQ", len(host), host,
                            b"i" * 16, b"S" * 16, 7)
    return struct.pack("<II", 1, len(body)) + body


def split_chunks(first, *chunks):
    """chunks: (kind, server, history, *words)"""
    body = struct.pack("<II", first, len(chunks))
    for kind, server, history, *words in chunks:
        body += struct.pack(f"<BBB{len(words)}Q", kind, server, history,
                            *words)
    return struct.pack("<II", 2, len(body)) + body


def split_end(remote=133, main=256, chunks=3):
    return struct.pack("<IIQQI", 3, 20, remote, main, chunks)


def split_streams():
    """The records of regions; the header of split-record.h."""
    mixed = (3, 0, 0x55, 1, 2, 0x1e, 1)
    yield "whole", split_begin() + split_chunks(
        0, (1, 0xff, 0xff), (2, 1, 0), mixed) + split_end()
    yield "piecewise", split_begin() + split_chunks(2, mixed) + \
        split_chunks(0, (0, 0xff, 0)) + split_chunks(1, (0, 1, 3)) + \
        split_chunks(1, (3, 0, 3, ALL, 0, 0, ALL, 1, ALL - 1, 0, 0)) + \
        split_end(0, 0)
    yield "small", split_begin(1 << 18, PAGE, 1) + \
        split_chunks(0, (2, 0, 0)) + split_end(1, 0, 1)
    yield "large", split_begin(1 << 26, 1 << 50, 16) + \
        split_chunks(0, (3, 15, 1, *[1 << 63, 1] * 256),
                     (1, 0xff, 0x80)) + split_end(1 << 37, 1 << 37, 1 << 24)


def control_lines():
    """What somebody sends to the control socket."""
    yield "status", '{"command": "status"}\n'
    yield "drop", '{"command":"drop","space":"5e55","force":false}\n'
    yield "drain", '{"command":"drain","undo":true}\n'
    yield "hand-over", '{"command":"hand-over"}\n'
    yield "types", '{"command":5,"space":null,"force":[1.5e3],"undo":{}}\n'
    yield "text", '{"command":"\\"\\\\\\u00e9\\u0000\\n\u6771"}\n'
    yield "twice", '{"command":"status"}{"command":"drain"}\n'
    yield "comment", '{/* " */"command":"status"}\n'
    yield "deep", '{"a":' + "[" * 60 + "]" * 60 + "}\n"
    yield "answer", '{"name":"n","rates_per_second":{"fetches":0.5},' \
        '"spaces":[{"id":"5e","clients":[{"side":"owner"}]}]}\n'
    yield "no-end", '{"command"'


def corpora():
    yield "request", "ping", request(PING)
    yield "request", "fetch", request(FETCH, 9, 77, 0x8001)
    yield "request", "store", store(ALL)[:40]
    yield "request", "compare", compare(5)[:40]
    yield "request", "drop", request(DROP, 1, 2, 3)
    yield "request", "offer", request(OFFER, body=b"e" * 32)[:40]
    yield "request", "commit", request(COMMIT, body=b"e" * 16)[:40]
    yield "request", "reserve", request(RESERVE, 1, 1 << 40)
    yield "request", "hello", request(HELLO, body=hello())[:40]
    yield "reply", "ping", reply(PING)
    yield "reply", "fetch", fetched(1, ALL)[:64]
    yield "reply", "full", reply(STORE, error=FULL)
    yield "reply", "welcome", reply(HELLO, body=welcome())[:64]
    yield "reply", "opened", reply(OPEN, body=opened())[:64]
    yield "hello", "one", hello()
    yield "hello", "many", hello(2, 9, ALL)
    yield "welcome", "open", welcome()
    yield "welcome", "auth", welcome(1)
    yield "open", "create", open_space()
    yield "open", "attach", open_space(3, create=False)
    yield "open", "heir", heir()
    yield "offer", "both", b"e" * 16 + b"h" * 16
    yield "offer", "session", b"e" * 16
    yield "open", "utf-8", open_space(name="Größe-\u6771".encode())
    yield "opened", "some", opened()
    yield "opened", "none", opened(1, 0)
    for name, data in client_streams():
        yield "tcp-client", name, data
    for name, data in server_streams():
        for how in range(3):
            yield "tcp-server", f"{name}-{how}", bytes((how,)) + data
    for name, data in session_streams():
        yield "memserver", name, data
    for name, text in control_lines():
        yield "control", name, text.encode()
    for name, data in split_streams():
        yield "split-record", name, data


def main():
    for target, name, data in corpora():
        path = pathlib.Path(sys.argv[1], target, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


main()
