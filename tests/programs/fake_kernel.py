"""A Jupyter kernel that misbehaves as its second argument says. It speaks the protocol by itself, with pyzmq."""

import hashlib
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid

import zmq

CONNECTION = json.load(open(sys.argv[1]))
MODE = sys.argv[2]
DELIMITER = b"<IDS|MSG>"

if MODE == "exits":
    print("no such module", file=sys.stderr, flush=True)
    sys.exit(3)
if MODE == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

context = zmq.Context()


def bind(kind, name):
    made = context.socket(kind)
    made.bind(f"tcp://{CONNECTION['ip']}:{CONNECTION[name + '_port']}")
    return made


class HandWritten:
    """A publisher by hand: it sends half of a long frame, or announces one of 2^62 bytes and sends none of it."""

    def __init__(self):
        self.listener = socket.create_server((CONNECTION["ip"], CONNECTION["iopub_port"]))
        self.ready = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        self.peer, _ = self.listener.accept()
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(23, b"\0") + bytes(32)
        self.peer.sendall(greeting[:64] + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB")
        self.ready.set()
        while self.peer.recv(4096):
            pass

    def send_multipart(self, frames):
        self.ready.wait()
        if MODE == "claims":
            return self.peer.sendall(b"\x02\x40" + bytes(7))
        for number, frame in enumerate(frames, 1):
            flags = 2 | (number < len(frames))
            sent = frame if len(frame) < 100_000 else frame[: len(frame) // 2]
            self.peer.sendall(bytes([flags]) + len(frame).to_bytes(8, "big") + sent)


shell = bind(zmq.ROUTER, "shell")
stdin = bind(zmq.ROUTER, "stdin")
control = bind(zmq.ROUTER, "control")
iopub = HandWritten() if MODE in ("claims", "breaks-off") else bind(zmq.PUB, "iopub")
heartbeat = bind(zmq.REP, "hb")


def echo():
    while True:
        heartbeat.send(heartbeat.recv())


threading.Thread(target=echo, daemon=True).start()


def signed(parts, key=CONNECTION["key"]):
    mac = hmac.new(key.encode(), digestmod=hashlib.sha256)
    for part in parts:
        mac.update(part)
    return [DELIMITER, mac.hexdigest().encode(), *parts]


def parts_of(kind, content, parent):
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "s", "username": "u", "version": "5.3"}
    return [json.dumps(part).encode() for part in (header, parent, {}, content)]


def publish(kind, content, parent):
    iopub.send_multipart([kind.encode(), *signed(parts_of(kind, content, parent))])


def out(text, parent):
    publish("stream", {"name": "stdout", "text": text}, parent)


def reply(sock, idents, kind, content, parent):
    sock.send_multipart([*idents, *signed(parts_of(kind, content, parent))])


def receive(sock):
    frames = sock.recv_multipart()
    at = frames.index(DELIMITER)
    header, _, _, content = (json.loads(frame) for frame in frames[at + 2 : at + 6])
    return frames[:at], header, content


def garbage(parent):
    """Messages that are none, and one of a type that nobody knows."""
    iopub.send_multipart([b"nothing"])
    iopub.send_multipart([DELIMITER])
    iopub.send_multipart([DELIMITER, b"", b"{}"])
    iopub.send_multipart([b"x"] * 40 + signed(parts_of("stream", {"name": "stdout", "text": "lost"}, parent)))
    iopub.send_multipart(signed([b"\xff", b"{", b"]", b""]))
    iopub.send_multipart(signed([b"{}", b"{}", b"{}", b"{}"]))
    iopub.send_multipart(signed(parts_of("stream", {"name": "nowhere"}, parent)))
    iopub.send_multipart(signed([b"x" * 2**21, b"{}", b"{}", b"{}"]))
    publish("of_its_own", {"text": "unknown"}, parent)
    publish("error", {"traceback": "y" * 2**25}, parent)


def run(idents, parent, code):
    ok = {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}
    if MODE == "dies":
        out("last output\n", parent)
        time.sleep(0.05)
        os._exit(int(code))
    elif MODE == "garbage":
        garbage(parent)
        out("after it\n", parent)
    elif MODE == "forged":
        parts = parts_of("stream", {"name": "stdout", "text": "forged\n"}, parent)
        iopub.send_multipart(signed(parts, key="another"))
        shell.send_multipart([*idents, *signed(parts_of("execute_reply", ok, parent), key="another")])
        out("genuine\n", parent)
    elif MODE == "floods":
        for number in range(int(code)):
            out(f"{number}\n", parent)
    elif MODE == "piles-up":
        # Small messages, and behind them one that is larger than what the connection holds: made before they are sent.
        small = signed(parts_of("stream", {"name": "stdout", "text": "x\n"}, parent))
        large = signed(parts_of("of_its_own", {"text": "y" * 2**24}, parent))
        for _ in range(int(code)):
            for _ in range(50):
                iopub.send_multipart(small)
            iopub.send_multipart(large)
    elif MODE == "plots":
        # A form that no client of ours shows: a million small values, 14 MB.
        data = {"application/json": [{"a": 0}] * 1_400_000, "text/plain": "a plot"}
        publish("display_data", {"data": data, "metadata": {}, "transient": {}}, parent)
        ok["payload"] = [{"source": "page", "data": [0] * 2_000_000}]
    elif MODE == "fails-long":
        publish("error", {"ename": "E", "evalue": "", "traceback": ["E"] + [""] * 3_000_000}, parent)
    elif MODE == "huge-reply":
        ok = {"status": "error", "ename": "E", "evalue": "x" * 2**26, "traceback": []}
    elif MODE == "closes":
        out("closing\n", parent)
        time.sleep(0.05)
        for sock in (shell, stdin, control):
            sock.close(linger=0)
        time.sleep(600)
    elif MODE == "waits":
        # Until the interrupt, which comes as a message.
        out("waiting\n", parent)
        with open("waiting", "w") as announcement:
            print(os.getpid(), file=announcement)
        control_idents, header, _ = receive(control)
        reply(control, control_idents, "interrupt_reply", {"status": "ok"}, header)
        out(header["msg_type"] + "\n", parent)
        ok = {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
    elif MODE == "nested":
        # What a script runner would start: a process of its own group's, which outlives the kernel.
        if os.fork() == 0:
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
    elif MODE == "breaks-off":
        out("x" * 400_000, parent)
        # It keeps the socket of the message.
        if os.fork() == 0:
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
    elif MODE == "claims":
        out("never comes", parent)
    reply(shell, idents, "execute_reply", ok, parent)


while True:
    idents, header, content = receive(shell)
    if MODE == "mute":
        continue
    if MODE != "claims":
        publish("status", {"execution_state": "busy"}, header)
    if header["msg_type"] == "kernel_info_request":
        info = {"status": "ok", "protocol_version": "5.3", "implementation": "fake", "language_info": {}}
        reply(shell, idents, "kernel_info_reply", info, header)
    elif header["msg_type"] == "execute_request":
        run(idents, header, content["code"])
    if MODE != "claims":
        publish("status", {"execution_state": "idle"}, header)
