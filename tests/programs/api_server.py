"""A stand-in for a Kubernetes API server that takes Events, as strict as the real one: no API server can be had here.

It checks what is published: the objects by the OpenAPI schemas of several versions (kubernetes-validate), what the schemas leave out
by the rules of ValidateEventCreate (pkg/apis/core/validation/events.go of kubernetes), the token, and that nothing but `create` of
Events is asked for, which is all that the recipe's role allows.

Arguments: a folder for `ca.crt` and `token`, and the status codes of the first answers, 0 for none. Says its port, then each object
with its answer, and waits for the end of stdin.
"""

import http.server
import ipaddress
import json
import re
import ssl
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import kubernetes_validate
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VERSIONS = ["1.25", "1.29", "1.33", "1.37"]
TOKEN = "the.service-account.token"
PATH = re.compile(r"/apis/events\.k8s\.io/v1/namespaces/([a-z0-9-]+)/events")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")

# What a server says with these codes (`Status`, meta/v1).
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists", 422: "Invalid"}
FORBIDDEN = (
    'events.events.k8s.io is forbidden: User "system:serviceaccount:krunner:krunner-node" cannot create resource "events" '
    'in API group "events.k8s.io" in the namespace "shop"'
)

folder = Path(sys.argv[1])
answers = [int(code) for code in sys.argv[2:]]
names = set()
lock = threading.Lock()


def certificate(name, key, issuer, issuer_key, extension):
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
    builder = builder.not_valid_after(now + timedelta(days=1)).add_extension(extension, critical=False)
    if key is issuer_key:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(key):
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def make_files():
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    authority_key, key = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = certificate(name("kubernetes"), authority_key, name("kubernetes"), authority_key, identifier)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server = certificate(name("kube-apiserver"), key, name("kubernetes"), authority_key, address)
    (folder / "ca.crt").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (folder / "token").write_text(TOKEN)
    chain = folder / "server.pem"
    chain.write_bytes(pem(key) + server.public_bytes(serialization.Encoding.PEM))
    return chain


def problems(event, namespace):
    """What ValidateEventCreate finds, beyond the schema."""
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(event, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield "schema of {}: {}".format(version, error.message)
    name = event["metadata"].get("name", "")
    if len(name) > 253 or not SUBDOMAIN.fullmatch(name):
        yield "metadata.name: {!r}".format(name)
    if event["metadata"].get("namespace") != namespace or event.get("regarding", {}).get("namespace") != namespace:
        yield "namespace: not that of the path and of the pod"
    for field, most in [("reason", 128), ("action", 128), ("reportingInstance", 128), ("note", 1024)]:
        if field != "note" and not event.get(field) or len(event.get(field, "").encode()) > most:
            yield "{}: {!r}".format(field, event.get(field))
    if not QUALIFIED.fullmatch(event.get("reportingController", "")):
        yield "reportingController: {!r}".format(event.get("reportingController"))
    if event.get("type") not in ("Normal", "Warning"):
        yield "type: {!r}".format(event.get("type"))
    series = event.get("series")
    if series is not None and (series["count"] < 2 or not series["lastObservedTime"]):
        yield "series: {!r}".format(series)
    if any(field.startswith("deprecated") for field in event):
        yield "deprecated fields must be unset"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        event = json.loads(self.rfile.read(length))
        with lock:
            code, message = self.judge(event)
            print(json.dumps({"code": code, "message": message, "event": event}), flush=True)
        if code == 0:
            self.close_connection = True
            return
        status = {"kind": "Status", "apiVersion": "v1", "message": message, "reason": REASONS.get(code, "")}
        self.answer(code, event if code == 201 else status)

    def judge(self, event):
        path = PATH.fullmatch(self.path)
        if self.headers["Authorization"] != "Bearer " + (folder / "token").read_text():
            return 401, "Unauthorized"
        if answers:
            code = answers.pop(0)
            return code, FORBIDDEN if code == 403 else "as the test wants it"
        if not path:
            return 403, "forbidden: " + self.path
        if self.headers["Content-Type"] != "application/json":
            return 415, "the media type is not supported"
        found = list(problems(event, path[1]))
        if found:
            return 422, "; ".join(found)
        key = (path[1], event["metadata"]["name"])
        if key in names:
            return 409, "events.events.k8s.io {!r} already exists".format(key[1])
        names.add(key)
        return 201, ""

    def do_GET(self):
        with lock:
            print(json.dumps({"code": 403, "message": self.command, "event": None}), flush=True)
        self.answer(403, {"kind": "Status", "message": "forbidden: " + self.command})

    do_PATCH = do_PUT = do_DELETE = do_GET

    def answer(self, code, body):
        body = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code == 429:
            self.send_header("Retry-After", "2")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(make_files())
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps({"port": str(server.server_address[1])}), flush=True)
sys.stdin.read()
server.shutdown()
