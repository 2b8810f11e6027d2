"""An image server on this machine that speaks OpenAI's images API, and misbehaves when told to.

Like vLLM-Omni and SGLang it lists its model, tells its version and takes seed and guidance as
further fields of the form. An image is a function of its form alone: the source, turned and tinted.
"""

import base64
import email
import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

KEY = "sk-secret-of-a-test"


class EditServer:
    """What the server is, what it was asked for, and how it answers next."""

    def __init__(self):
        self.models, self.version, self.facts = ["editor-1"], "0.9.1", {"root": "hub/editor"}
        self.forms, self.keys = [], []
        self.answers = []
        """Taken one by one for images, before good answers: a status, a pair of status and body, a
        triple with headers, a function of the form, or `HANG`."""
        self.seconds = 0.0
        self.at_once = self.most_at_once = 0
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.url = ""

    def next_answer(self):
        with self.lock:
            return self.answers.pop(0) if self.answers else 200

    @contextmanager
    def counted(self):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self.lock:
                self.at_once -= 1


def HANG(_):  # noqa: N802
    """Answer nothing until the server ends."""


def edited(form):
    """The image of a form: 40 bits of its words decide the tint."""
    side = int(form["size"].partition("x")[0])
    source = Image.open(io.BytesIO(form["image"])).convert("RGB").resize((side, side))
    words = f"{form['prompt']} {form.get('seed')} {form.get('guidance_scale')} {form['model']}"
    rng = np.random.default_rng(list(words.encode()))
    noise = rng.integers(0, 64, (side, side, 3))
    return Image.fromarray(((np.asarray(source)[::-1] // 2) + noise).astype(np.uint8))


def answer_with(image, format="PNG"):
    """The body of a good answer."""
    file = io.BytesIO()
    image.save(file, format)
    return {"created": 1, "data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


def read_form(content_type, body):
    parts = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    found = {}
    for part in parts.get_payload():
        name = part.get_param("name", header="Content-Disposition")
        content = part.get_payload(decode=True)
        found[name] = content if name == "image" else content.decode()
    return found


def _handler(server):  # noqa: C901 - a class of short functions
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):  # noqa: N802
            if self.path == "/v1/models":
                data = [
                    {"id": name, "created": time.time_ns(), **server.facts}
                    for name in server.models
                ]
                self.reply(200, {"object": "list", "data": data})
            elif self.path == "/version" and server.version:
                self.reply(200, {"version": server.version})
            else:
                self.reply(404, {"detail": "Not Found"})

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/images/edits":
                self.reply(404, {"detail": "Not Found"})
                return
            with server.counted():
                form = read_form(self.headers["Content-Type"], body)
                server.forms.append(form)
                server.keys.append(self.headers.get("Authorization"))
                server.ended.wait(server.seconds)
                self.answer(server.next_answer(), form)

        def answer(self, told, form):
            if told is HANG:
                server.ended.wait()
                self.close_connection = True
            elif callable(told):
                self.answer(told(form), form)
            elif told == 200:
                self.reply(200, answer_with(edited(form)))
            elif isinstance(told, int):
                self.reply(told, {"error": {"message": f"told to, {form['model']}"}})
            else:
                self.reply(*told)

        def reply(self, status, answer, headers=()):
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Say nothing of clients that hang up, as they do when they are stopped."""


@contextmanager
def edit_server():
    """Serve images; yield the server, whose `url` is the address of its API."""
    server = EditServer()
    http = _Quiet(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.ended.set()
        http.shutdown()
        http.server_close()
