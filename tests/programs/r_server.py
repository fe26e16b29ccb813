"""A stand-in for Microsoft R Server, which can be had nowhere any more. It checks every request to the letter.

Each request becomes a line on stdout: what was asked, and "wrong" if it is not as the server's API has it. At the
end of stdin comes a last line with what was left behind. Code is not run, but these words in it have an effect:

    wait      no answer before the session is cancelled, or the client leaves
    expire    the access token is not taken any more
    lock      nor is the refresh token
    forget    the session is gone afterwards
    fail      R reports an error
    crash     the server answers 500
    flood     a megabyte of output
"""

import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

EXPIRES_IN = sys.argv[1]
CREDENTIALS = {"username": "rita", "password": "pässword"}
JSON = "application/json"


class World:
    def __init__(self):
        self.lock = threading.Lock()
        self.serial = 0
        self.access = self.refresh = None
        self.access_taken = True
        self.sessions = {}

    def number(self):
        self.serial += 1
        return self.serial

    def new_tokens(self):
        self.access = "access-{}".format(self.number())
        # Characters that an address must not have as they are.
        self.refresh = "refresh/{}+=&".format(self.number())
        self.access_taken = True
        return {
            "token_type": "Bearer",
            "access_token": self.access,
            "refresh_token": self.refresh,
            "expires_in": EXPIRES_IN,
        }


world = World()


def say(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Wrong(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self, expected_keys):
        """The JSON of the request, which has to have exactly these members."""
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if expected_keys is None:
            if text:
                raise Wrong("a body where none belongs: {!r}".format(text))
            return None
        if self.headers.get("Content-Type") != JSON:
            raise Wrong("content type {!r}".format(self.headers.get("Content-Type")))
        value = json.loads(text)
        if sorted(value) != sorted(expected_keys):
            raise Wrong("members {}, not {}".format(sorted(value), sorted(expected_keys)))
        return value

    def answer(self, status, value=None):
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def is_user(self):
        given = self.headers.get("Authorization")
        if given is None:
            raise Wrong("no authorization")
        return world.access_taken and given == "Bearer {}".format(world.access)

    def handle_one(self):
        path = urlsplit(self.path)
        line = {"asked": "{} {}".format(self.command, path.path)}
        try:
            status, value = self.route(self.command, path, line)
        except (Wrong, ValueError) as error:
            line["wrong"] = str(error)
            status, value = 400, {"error": str(error)}
        line["status"] = status
        say(line)
        try:
            self.answer(status, value)
        except OSError:
            say({"asked": "(nobody waits for that answer)"})

    do_GET = do_POST = do_DELETE = do_PUT = handle_one

    def route(self, method, path, line):
        parts = path.path.strip("/").split("/")
        if (method, parts) == ("POST", ["login"]):
            if "Authorization" in self.headers:
                raise Wrong("an authorization before the login")
            if self.body(CREDENTIALS) != CREDENTIALS:
                return 401, {"error": "who is that?"}
            return 200, world.new_tokens()
        if (method, parts) == ("POST", ["login", "refreshToken"]):
            if self.headers.get("Authorization") != "Bearer {}".format(world.access):
                raise Wrong("the refresh of another client's token")
            if self.body(["refreshToken"])["refreshToken"] != world.refresh:
                return 401, {"error": "worn out"}
            return 200, world.new_tokens()
        if (method, parts) == ("DELETE", ["login", "refreshToken"]):
            self.body(None)
            if parse_qs(path.query, strict_parsing=True) != {"refreshToken": [world.refresh]}:
                raise Wrong("the query {!r}".format(path.query))
            if not self.is_user():
                return 401, None
            world.refresh = None
            return 200, None
        if path.query:
            raise Wrong("a query")
        if (method, parts) == ("POST", ["sessions"]):
            self.body([])
            if not self.is_user():
                return 401, None
            name = "session-{}".format(world.number())
            world.sessions[name] = threading.Event()
            return 201, {"sessionId": name}
        if len(parts) >= 2 and parts[0] == "sessions":
            return self.session(method, parts[1], parts[2:], line)
        raise Wrong("no such path")

    def session(self, method, name, rest, line):
        if (method, rest) == ("POST", ["execute"]):
            code = self.body(["code"])["code"]
            line["code"] = code
            if not self.is_user():
                return 401, None
            if name not in world.sessions:
                return 404, {"error": "no such session"}
            return self.execute(name, code)
        if (method, rest) == ("POST", ["cancel"]):
            self.body([])
            if not self.is_user():
                return 401, None
            world.sessions[name].set()
            return 200, None
        if (method, rest) == ("DELETE", []):
            self.body(None)
            if not self.is_user():
                return 401, None
            return (200, None) if world.sessions.pop(name, None) else (404, None)
        raise Wrong("no such path")

    def execute(self, name, code):
        if "wait" in code:
            cancelled = world.sessions[name]
            say({"asked": "(waits)"})
            cancelled.wait(60)
            cancelled.clear()
        if "expire" in code or "lock" in code:
            world.access_taken = False
        if "lock" in code:
            world.refresh = "another"
        if "forget" in code:
            del world.sessions[name]
        if "crash" in code:
            return 500, {"error": "out of order"}
        if "fail" in code:
            return 200, {"success": False, "errorMessage": "Error: object 'x' not found\n", "consoleOutput": "before\n"}
        output = "x" * 2**20 if "flood" in code else "ran {} in {}\n".format(code, name)
        return 200, {"success": True, "errorMessage": "", "consoleOutput": output, "changedFiles": []}



class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that leaves, or does not trust the certificate, is a part of the tests; all else shows."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError)):
            say({"wrong": repr(sys.exc_info()[1])})


server = Server(("127.0.0.1", 0), Handler)
server.daemon_threads = True
scheme = "http"
if len(sys.argv) > 2:
    # The certificate and its key, in one file.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scheme = "https"
threading.Thread(target=server.serve_forever, daemon=True).start()
say({"endpoint": "{}://127.0.0.1:{}".format(scheme, server.server_address[1])})
sys.stdin.read()
say({"sessions": sorted(world.sessions), "refresh": world.refresh})
