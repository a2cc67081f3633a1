"""What must be refused, row by row: told to the framing alone (test_framing.py) and to a gateway over sockets (tests/faults)."""

from __future__ import annotations

# Fields behind a good request line and Host.
TWO_READINGS = [
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    b"Content-Length: 3\r\nContent-Length: 3\r\n",
    b"Content-Length: 3, 3\r\n",
    b"Content-Length: 3\r\nContent-Length: 4\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: 0x3\r\n",
    b"Content-Length: -3\r\n",
    b"Content-Length: 18446744073709551619\r\n",
    b"Content-Length: \r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"X-A : b\r\n",
    b"X-A: a\x00b\r\n",
    b"X-A: a\rb\r\n",
    b"X A: b\r\n",
    b": b\r\n",
    b"X-A: b\r\n folded\r\n",
    b" X-A: b\r\n",
    b"X-A: b\n",
    b"Host: b\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n",
    b"Upgrade: foo\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n",
    b"\xc3\xa9: b\r\n",
    b"Content-Length: 3\r\nTransfer-Encoding: identity\r\n",
    b"Content-Length: 3 3\r\n",
    b"Content-Length: 3\r\nContent-Length : 3\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding: chunked;q=1\r\n",
    b"X-A\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n",
]

# Whole heads.
NO_REQUESTS = [
    b"POST / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    b"post / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/3.7\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.10\r\nHost: a\r\n\r\n",
    b"POST  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1 \r\nHost: a\r\n\r\n",
    b"POST /\x80 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\n",
    b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
]

# Bodies that claim to be chunked.
NO_CHUNKS = [
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\nabc\r\n0\r\n\r\n",
    b"0x3\r\nabc\r\n",
    b"+3\r\nabc\r\n",
    b" 3\r\nabc\r\n",
    b"\r\n3\r\nabc\r\n",
    b"g\r\n",
    b"ffffffffffffffffffff\r\n",
    b"-1\r\n",
    b"3;" + b"a" * 300 + b"\r\nabc\r\n",
    b"3\r\nabc\r\n0\r\nA b: c\r\n\r\n",
    b"3" * 600,
    b"3\r\nabc\n\n0\r\n\r\n",
    b"0;a=b\r\nContent-Length 3\r\n\r\n",
]
