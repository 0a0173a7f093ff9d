"""A server on the guest's loopback: pages, uploads, and a WebSocket that says back what it is told."""

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


# A page that is not loaded before its conversation is over: the picture comes only then.
TALK = b"""<!doctype html><title>talk</title><ul id="said"></ul><img src="/over"><script>
const say = text => document.getElementById("said").append(Object.assign(document.createElement("li"), {textContent: text}));
const socket = new WebSocket(`ws://${location.host}/chat`);
const words = ["one", "two", "three"];
const next = () => socket.send(words.length ? words.shift() : "over");
socket.onopen = () => { say(`opened by ${location.host.split(":")[0]}`); next(); };
socket.onmessage = message => { say(message.data); next(); };
socket.onerror = () => { say("broken"); fetch("/broken"); };
</script>"""
PICTURE = base64.b64decode("R0lGODlhAQABAAAAACwAAAAAAQABAAACAkwBADs=")
over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.chat()
        elif self.path == "/headers":
            self.answer(str(self.headers).encode())
        elif self.path == "/talk":
            self.answer(TALK)
        elif self.path == "/over":
            over.wait()
            self.answer(PICTURE)
        elif self.path == "/broken":
            over.set()
            self.answer(b"")
        else:
            self.answer(b"page of the guest\n")

    def do_POST(self):
        digest = hashlib.sha256()
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers["Content-Length"])
            while left > 0:
                piece = self.rfile.read(min(left, 65536))
                digest.update(piece)
                left -= len(piece)
        self.answer(digest.hexdigest().encode())

    def chat(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 != 1:
                break
            # Short texts alone, which is what the test sends.
            length = head[1] & 127
            mask = self.rfile.read(4)
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            if text == b"over":
                over.set()
                break
            reply = b"guest: " + text
            self.wfile.write(bytes([0x81, len(reply)]) + reply)
        self.close_connection = True


server = ThreadingHTTPServer(("127.0.0.1", 3000), Handler)
print("ready", flush=True)
server.serve_forever()
