"""A model server whose health is what the file "answer" in its folder says: a status, "hang", or nothing yet."""

import http.server
import pathlib
import socketserver
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            answer = pathlib.Path("answer").read_text().strip()
        except FileNotFoundError:
            answer = "503"
        if answer == "hang":
            threading.Event().wait()
        self.send_response(int(answer))
        self.end_headers()


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
