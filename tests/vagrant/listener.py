"""The intruder's end of a reverse shell: listener.py PORT FILE

Says `echo beat N` once a second to whoever has called, and adds a line to FILE for each answer, with its time.
"""

import select
import socket
import sys
import time

port, path = int(sys.argv[1]), sys.argv[2]
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("", port))
server.listen()
shells, number = [], 0
while True:
    readable, _, _ = select.select([server] + shells, [], [], 1)
    for ready in readable:
        if ready is server:
            shells.append(server.accept()[0])
            continue
        try:
            answer = ready.recv(4096)
        except OSError:
            answer = b""
        if not answer:
            shells.remove(ready)
            continue
        with open(path, "a") as out:
            for line in answer.decode(errors="replace").splitlines():
                out.write(f"{time.time():.3f} {line}\n")
    if readable and server not in readable:
        time.sleep(1)
    number += 1
    for shell in list(shells):
        try:
            shell.setblocking(False)
            shell.send(f"echo beat {number}\n".encode())
        except BlockingIOError:
            pass
        except OSError:
            shells.remove(shell)
