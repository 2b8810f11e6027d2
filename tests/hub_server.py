"""A hub on this machine that speaks the real one's protocol, as far as publishing needs it.

huggingface_hub itself talks to it: what it creates, uploads and how it is refused is HTTP, not a
replaced function. Every file is asked for in the commit itself, as the hub does for small ones.
"""

import base64
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub:
    """What was created and committed, by repository."""

    def __init__(self):
        self.tokens, self.private, self.files = {"hf_writer": 200, "hf_reader": 403}, {}, {}


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status = hub.tokens.get(token, 401)
            answer = self.accept(body) if status == 200 else {"error": "refused"}
            self.reply(status, answer)

        def accept(self, body):
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization')}/{asked['name']}"
                hub.private.setdefault(
                    name, asked.get("visibility") == "private" or bool(asked.get("private"))
                )
                return {"url": f"http://{self.headers['Host']}/{name}", "name": name}
            if self.path == "/api/validate-yaml":  # the head of the card
                return {"errors": [], "warnings": []}
            repository = "/".join(self.path.split("/")[3:5])
            if "/preupload/" in self.path:
                how = {"uploadMode": "regular", "shouldIgnore": False}
                return {"files": [{"path": f["path"], **how} for f in json.loads(body)["files"]]}
            lines = [json.loads(line) for line in body.splitlines()]
            hub.files[repository] = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            place = f"http://{self.headers['Host']}/{repository}/commit/abc"
            return {"commitUrl": place, "commitOid": "abc", "success": True}

        def reply(self, status, answer):
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def local_hub():
    """Serve a hub; yield it and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
