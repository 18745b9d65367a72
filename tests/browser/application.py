"""An application as the README tells: its pages, and a route that passes on callvault's `/link` with the key."""

import http.server
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[2] / "deploy" / "clients" / "browser"
TYPES = {".js": "text/javascript", ".html": "text/html; charset=utf-8"}


class Application:
    """Serves `files` by path, and `/calls/{CA}/link`. `troubles` are met by the next requests for a link."""

    def __init__(self, service, key):
        self.service, self.key = service, key
        self.files = {"/callvault-player.js": (CLIENT / "callvault-player.js").read_text()}
        self.troubles = []
        self.asked = 0
        handler = type("Handler", (Handler,), {"application": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def link(self, call, wait):
        request = urllib.request.Request(f"{self.service}/v1/calls/{call}/link?wait={wait}",
                                         headers={"Authorization": f"Bearer {self.key}"})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/calls/") and path.endswith("/link"):
            self.application.asked += 1
            trouble = self.application.troubles.pop(0) if self.application.troubles else None
            if trouble == "broken off":
                self.close_connection = True
                return
            status, body = trouble or self.application.link(path.split("/")[2], wait=0)
            self.answer(status, "application/json", body if isinstance(body, bytes) else json.dumps(body).encode())
        elif path in self.application.files:
            kind = TYPES.get(Path(path).suffix, "text/html; charset=utf-8")
            self.answer(200, kind, self.application.files[path].encode())
        else:
            self.answer(404 if path != "/favicon.ico" else 204, "text/plain", b"")

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
