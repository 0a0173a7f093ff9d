"""Plays the internet in a network namespace in which every address is its own.

Prints "ready", and then a line for whatever reaches it; nothing here sends a packet anywhere else.

    world.py CERTIFICATE PRIVATE_KEY
"""

import socket
import socketserver
import ssl
import sys
import threading

SITE, OTHER = "198.18.0.1", "198.19.0.1"
INTERNAL, METADATA = "192.168.7.1", "169.254.169.254"
SITE_V6 = "2001:db8:18::1"
WHO = {SITE: "site", OTHER: "other", INTERNAL: "internal", METADATA: "metadata", SITE_V6: "ipv6"}
NAMES = {
    "site.test": [SITE],
    "a.below.test": [SITE],
    "other.test": [OTHER],
    "rebound.test": [INTERNAL, METADATA],
}
printing = threading.Lock()


def say(*words):
    with printing:
        print(*words, flush=True)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address, port, handler):
        self.address_family = family(address)
        super().__init__((address, port), handler)


class Echo(socketserver.StreamRequestHandler):
    """Repeats every line with its name before it."""

    def handle(self):
        who = WHO[self.server.server_address[0]]
        for line in self.rfile:
            text = line.decode("latin-1").strip()
            say("line", who, self.client_address[0], text)
            self.wfile.write(f"{who} {text}\n".encode("latin-1"))


class Web(socketserver.StreamRequestHandler):
    """Answers every request with its name, and stays connected."""

    kind = "http"

    def handle(self):
        who = WHO[self.server.server_address[0]]
        say(self.kind, who, self.client_address[0], getattr(self.request, "named", "-"))
        while request := self.rfile.readline():
            host = "-"
            while (header := self.rfile.readline().strip()):
                name, _, value = header.decode("latin-1").partition(":")
                host = value.strip() if name.lower() == "host" else host
                if name.lower() == "authorization":
                    say("authorization", who, value.strip())
            say("request", who, host, request.decode("latin-1").strip())
            body = f"{who}\n".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)


class SecureWeb(Web):
    kind = "tls"

    def setup(self):
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self):
        self.request.named = getattr(self.request, "asked_for", "-")
        super().handle()


def secure(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def named(connection, name, _):
        connection.asked_for = name or "-"

    context.sni_callback = named
    return context


def answer(query):
    """A response (RFC 1035, 4.1): addresses for A, nothing for other types, NXDOMAIN for others."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii"))
        at += 1 + query[at]
    name, kind = ".".join(labels).lower(), int.from_bytes(query[at + 1 : at + 3], "big")
    known = NAMES.get(name)
    found = known if known and kind == 1 else []
    flags = 0x8180 if known else 0x8183
    counts = [1, len(found), 0, 0]
    head = query[:2] + flags.to_bytes(2, "big") + b"".join(n.to_bytes(2, "big") for n in counts)
    records = [b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + socket.inet_aton(one) for one in found]
    return name, head + query[12 : at + 5] + b"".join(records)


def serve_names(address):
    names = socket.socket(family(address), socket.SOCK_DGRAM)
    names.bind((address, 53))

    def serve():
        while True:
            query, asker = names.recvfrom(2048)
            name, response = answer(query)
            say("name", WHO[address], asker[0], name)
            names.sendto(response, asker)

    threading.Thread(target=serve, daemon=True).start()


def hear_datagrams(address, port):
    heard = socket.socket(family(address), socket.SOCK_DGRAM)
    heard.bind((address, port))

    def hear():
        while True:
            text, sender = heard.recvfrom(2048)
            say("datagram", WHO[address], sender[0], port, text.decode("latin-1"))
            heard.sendto(text, sender)

    threading.Thread(target=hear, daemon=True).start()


def main():
    context = secure(sys.argv[1], sys.argv[2])
    for address in WHO:
        serve_names(address)
        for port in (9, 443):
            hear_datagrams(address, port)
        for port, handler in ((53, Echo), (80, Web), (443, SecureWeb), (8080, Echo)):
            server = Server(address, port, handler)
            server.context = context
            threading.Thread(target=server.serve_forever, daemon=True).start()
    say("ready")
    # The end of this is the end of the test.
    sys.stdin.read()


main()
