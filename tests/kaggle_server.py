"""A small local server that speaks the part of Kaggle's protocol that `kaggle competitions submit` uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

# scenario → the step that fails, the HTTP status and the body's message (None: a page that is no JSON)
SCENARIOS = {
    "success": (None, 200, ""),
    "upload_403": ("PUT", 403, None),
    "upload_503": ("PUT", 503, None),
    "busy": ("CreateSubmission", 503, None),
    "quota": (
        "CreateSubmission",
        400,
        "Your team has used its daily Submission allowance (5) today, please try again tomorrow UTC (7.4 hours from now).",
    ),
    "bare_400": ("CreateSubmission", 400, None),
    "rules": ("StartSubmissionUpload", 403, "You must accept this competition's rules before you'll be able to submit."),
    "not_joined": ("StartSubmissionUpload", 403, "Permission 'competitions.participate' was denied"),
    "wrong_competition": ("StartSubmissionUpload", 404, None),
    "bad_token": ("StartSubmissionUpload", 401, None),
    "refused": ("CreateSubmission", 200, "Submission received in an unexpected state"),
}


class Kaggle(ThreadingHTTPServer):
    """The server: set `scenario`, then look at `files` (uploaded bytes) and `messages` (descriptions of submissions)."""

    scenario = "success"
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.files: list[bytes] = []
        self.messages: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Kaggle

    def do_POST(self) -> None:
        step = self.path.rsplit("/", 1)[-1]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        failing, status, message = SCENARIOS[self.server.scenario]
        if step == failing and status >= 400:
            return self._reply(status, None if message is None else {"code": status, "message": message})
        if step == "StartSubmissionUpload":
            return self._reply(200, {"token": "t", "createUrl": f"http://127.0.0.1:{self.server.server_port}/blob"})
        if step == "CreateSubmission":
            self.server.messages.append(asked.get("submissionDescription", ""))
            return self._reply(200, {"message": message or "Successfully submitted to Titanic", "ref": 4711})
        if step == "GetSubmissionLimits":
            return self._reply(200, {"numToday": 1, "numTotal": 1, "numAllowedNow": 4})
        return self._reply(404, None)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        failing, status, _ = SCENARIOS[self.server.scenario]
        if failing == "PUT":
            return self._reply(status, None)
        self.server.files.append(data)
        return self._reply(200, {})

    def _reply(self, status: int, body: dict | None) -> None:
        data = b"<html>no</html>" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if body is None else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextmanager
def serving(port: int = 80) -> Iterator[Kaggle]:
    """Serve while the block runs; the client's LOCALHOST environment is port 80."""
    server = Kaggle(port)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
