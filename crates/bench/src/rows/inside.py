"""The smallest server of HTTP: on the guest's loopback, a connection for each request."""

import socket

PIECE = bytes(65536)

server = socket.create_server(("127.0.0.1", 3000), backlog=64)
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(4096)
        if not piece:
            break
        head += piece
    # The path is the number of pieces.
    words = head.split(b" ")
    pieces = int(words[1][1:]) if len(words) > 1 else 0
    length = pieces * len(PIECE) or 6
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % length)
        for _ in range(pieces):
            connection.sendall(PIECE)
        if not pieces:
            connection.sendall(b"ready\n")
    except OSError:
        pass
    connection.close()
