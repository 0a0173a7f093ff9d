"""What a guest tries on the network, and what it is told.

    egress_guest.py tcp ADDRESS PORT            connects, says a line, prints the answer
    egress_guest.py udp ADDRESS PORT TEXT [OWN] sends a datagram, from the address OWN if given
    egress_guest.py name SERVER NAME [tcp]      asks a name server
    egress_guest.py hold                        what becomes of connections when the policy changes
"""

import errno
import json
import os
import socket
import ssl
import sys
import time

# How long nothing has to come, and how long something may take. With --silence before the rest nothing
# is expected.
SILENCE, PATIENCE = 4, 120
expected = SILENCE if sys.argv[1] == "--silence" else PATIENCE


def told(work):
    try:
        return work()
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def tcp(address, port):
    with socket.create_connection((address, int(port)), timeout=expected) as stream:
        stream.sendall(b"hello\n")
        return stream.makefile().readline().strip() or "ended"


def udp(address, port, text, own=None):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(expected)
        if own:
            sender.bind((own, 0))
        sender.connect((address, int(port)))
        sender.send(text.encode())
        return sender.recv(2048).decode()


def name(server, asked, how="udp"):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in asked.split("."))
    query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
    if how == "tcp":
        with socket.create_connection((server, 53), timeout=expected) as stream:
            stream.sendall(len(query).to_bytes(2, "big") + query)
            answer = stream.recv(2048)[2:]
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(expected)
            sender.connect((server, 53))
            sender.send(query)
            answer = sender.recv(2048)
    return f"rcode {answer[3] & 15}"


def ask(stream, host):
    stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        if not byte:
            return "ended"
        head += byte
    return head.split(b" ")[1].decode()


def rest(stream, host):
    """Reads the body whose head was read."""
    return stream.recv(64).decode().strip()


def line(stream, text):
    stream.sendall(text.encode() + b"\n")
    heard = b""
    while not heard.endswith(b"\n"):
        more = stream.recv(64)
        if not more:
            return "ended"
        heard += more
    return heard.decode().strip()


def hold():
    trusted = ssl.create_default_context(cafile="/root/certificate")

    def connect(host, port):
        return socket.create_connection((host, port), timeout=PATIENCE)

    def secure(host):
        return trusted.wrap_socket(connect(host, 443), server_hostname=host)

    hosts = {"kept": "site.test", "lost": "other.test"}
    streams = {}
    for fate, host in hosts.items():
        streams[fate] = secure(host), connect(host, 8080), connect(host, 80)
        tls, lines, http = streams[fate]
        before = ask(tls, host), rest(tls, host), line(lines, "before"), ask(http, host)
        assert before == ("200", host[:-5], f"{host[:-5]} before", "200"), before
        rest(http, host)
    open("/root/held", "w").close()
    while not os.path.exists("/root/changed"):
        time.sleep(0.05)
    said = {}
    for fate, (tls, lines, http) in streams.items():
        if fate == "lost":
            # The policy is in force: this can never be answered.
            lines.settimeout(SILENCE)
        else:
            said["tls kept"] = told(lambda: ask(tls, hosts[fate]))
        said[f"line {fate}"] = told(lambda: line(lines, "after"))
        said[f"http {fate}"] = told(lambda: ask(http, hosts[fate]))
    # It was ended for us: nothing needs to be sent to notice.
    ended = told(lambda: streams["lost"][0].recv(1))
    said["tls lost"] = ended if isinstance(ended, str) else "ended" if not ended else "open"
    return json.dumps(said, sort_keys=True)


work, *arguments = [word for word in sys.argv[1:] if word != "--silence"]
print(told(lambda: globals()[work](*arguments)))
