"""The intruder's tries at a host that boots: knock.py HOST

About ten a second: TCP to SSH, the web server and PostgreSQL, a DNS question, an echo request. Whether anything comes
back is seen by the capture beside.
"""

import socket
import struct
import sys
import time

host = sys.argv[1]
question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\x06victim\x00\x00\x01\x00\x01"


def echo(number):
    head = struct.pack(">BBHHH", 8, 0, 0, 7, number & 0xFFFF)
    total = sum(struct.unpack(">4H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:2] + struct.pack(">H", ~total & 0xFFFF) + head[4:]


ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
number = 0
while True:
    number += 1
    tries = []
    for port in (22, 80, 5432):
        tcp = socket.socket()
        tcp.setblocking(False)
        tcp.connect_ex((host, port))
        tries.append(tcp)
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tries.append(dns)
    try:
        dns.sendto(question, (host, 53))
        ping.sendto(echo(number), (host, 0))
    except OSError:
        # The link is not there: the next try.
        pass
    time.sleep(0.5)
    for one in tries:
        one.close()
