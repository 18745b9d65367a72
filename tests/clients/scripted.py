"""A callvault and a bucket that say what a test tells them to, and note what they were asked."""

import hashlib
import http.server
import json
import threading
import urllib.parse

CALL, RECORDING = f"CA{1:032x}", f"RE{1:032x}"
AUDIO = b"RIFF" + bytes(range(256)) * 4096


def problem(status, code, **headers):
    """An answer that is a problem document."""
    body = {"type": "about:blank", "title": "T", "status": status, "detail": "D", "code": code}
    return status, json.dumps(body).encode(), headers


class Scripted(http.server.ThreadingHTTPServer):
    """Answers by path (without its query); a list is answered one after another, its last for ever."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers, self.seen = {}, []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_):
        """A client that went away is what some tests are about."""

    def asked(self, path):
        """The requests for that path: method, query, headers."""
        return [request for request in self.seen if request[1] == path]

    def link(self, bucket, audio=AUDIO, recording=RECORDING, **more):
        """The answer of /link for such an object in that bucket."""
        link = {
            "url": f"{bucket.url}/{recording}?X-Amz-Signature=1",
            "recording_sid": recording,
            "call_sid": CALL,
            "sha256": hashlib.sha256(audio).hexdigest(),
            "size_bytes": len(audio),
            "content_type": "audio/wav",
            "bucket": "b",
            "key": "k",
            "expires_at": "2030-01-01T00:00:00Z",
            "expires_in_seconds": 3600,
            **more,
        }
        return 200, json.dumps(link).encode(), {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.seen.append((self.command, path, urllib.parse.parse_qs(query), dict(self.headers), body))
        answers = self.server.answers.get(path, [problem(404, "not_found")])
        told = answers.pop(0) if len(answers) > 1 else answers[0]
        status, body, headers = told() if callable(told) else told
        # A status of none is no answer at all.
        if status is None:
            self.close_connection = True
            return
        self.send_response(status)
        # A length of its own is a lie that the connection's end uncovers.
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = "Content-Length" in headers or "Content_Length" in headers

    do_GET = do_PUT = do_POST = answer

    def log_message(self, *_):
        pass
