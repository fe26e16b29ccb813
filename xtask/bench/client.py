"""The one client of the bench: it drives every runner and every yardstick in the same way.

Reads a command per line from standard input and answers each with a line of JSON; xtask is at the
other end. Sockets are made as the agent makes them, but for a reconnect interval of 1 ms, so that
the time from a runner's start to its first reply is the runner's own. Every reply is checked; a
wrong one is an error, never a figure.
"""

import json
import os
import sys
import time

import msgpack
import zmq

# A runner that says nothing for so long has failed.
RECV_TIMEOUT_MS = 60_000
GATE_TIMEOUT_S = 20
WARM_UP_ROUND_TRIPS = 200


class Client:
    def __init__(self):
        self.context = zmq.Context()
        self.ops = None
        self.replies = None

    def connect(self, replin, replout):
        """Starts connecting; the peer may come up later."""
        self.close()
        self.ops = self.context.socket(zmq.PUSH)
        self.replies = self.context.socket(zmq.PULL)
        for socket, port in ((self.ops, replin), (self.replies, replout)):
            socket.setsockopt(zmq.RECONNECT_IVL, 1)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(f"tcp://127.0.0.1:{port}")
        self.replies.setsockopt(zmq.RCVTIMEO, RECV_TIMEOUT_MS)
        return {}

    def close(self):
        for socket in (self.ops, self.replies):
            if socket is not None:
                socket.close()
        self.ops = self.replies = None
        return {}

    def start(self, gate):
        """Opens the gate behind which a runner waits; times it up to its first status reply."""
        handle = open_gate(gate)
        self.ops.send_multipart([b"status", b""])
        began = time.perf_counter_ns()
        os.write(handle, b"\n")
        payload = self._receive(b"status")
        took = time.perf_counter_ns() - began
        os.close(handle)
        started_at = msgpack.unpackb(payload)["started_at"]
        if not isinstance(started_at, float):
            raise ValueError(f"started_at is {started_at!r}")
        return {"ms": took / 1e6}

    def status(self, count):
        """Round trips of `status`, one at a time: the median."""
        expected = None
        took = []
        for index in range(count + WARM_UP_ROUND_TRIPS):
            began = time.perf_counter_ns()
            self.ops.send_multipart([b"status", b""])
            payload = self._receive(b"status")
            took.append(time.perf_counter_ns() - began)
            if expected is None:
                expected = payload
            if payload != expected:
                raise ValueError(f"status {index} was {payload!r}, not {expected!r}")
        return {"us": median(took[WARM_UP_ROUND_TRIPS:]) / 1e3}

    def execute(self, line, count):
        """Steps that say nothing, one at a time: the median."""
        took = []
        for _ in range(count):
            began = time.perf_counter_ns()
            self.send(line)
            written = self._until_finished()
            took.append(time.perf_counter_ns() - began)
            if written:
                raise ValueError(f"`{line}` wrote {written} bytes")
        return {"ms": median(took) / 1e6}

    def stream(self, line):
        """One step and the bytes that it writes."""
        began = time.perf_counter_ns()
        self.send(line)
        return {"bytes": self._until_finished(), "seconds": (time.perf_counter_ns() - began) / 1e9}

    def send(self, line):
        self.ops.send_multipart([b"exec", line.encode()])
        return {}

    def drain(self):
        """What a step sent earlier wrote, up to its end."""
        return {"bytes": self._until_finished()}

    def _until_finished(self):
        receive = self.replies.recv_multipart
        written = 0
        log = b""
        while True:
            kind, payload = receive()
            if kind == b"stdout":
                written += len(payload)
            elif kind == b"finished":
                code = json.loads(payload)["exitCode"]
                if code != 0:
                    raise ValueError(f"exit code {code}: {log[-500:].decode(errors='replace')}")
                return written
            elif kind == b"stderr":
                log += payload
            else:
                raise ValueError(f"a {kind!r} reply during a step")

    def _receive(self, wanted):
        """The next reply, log lines aside."""
        while True:
            kind, payload = self.replies.recv_multipart()
            if kind == wanted:
                return payload
            if kind != b"stderr":
                raise ValueError(f"a {kind!r} reply in place of {wanted!r}")


def open_gate(gate):
    """Opens a named pipe for writing once someone reads it."""
    deadline = time.monotonic() + GATE_TIMEOUT_S
    while True:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError("the runner's world did not come up") from None
            time.sleep(0.001)


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    client = Client()
    tasks = {
        name: getattr(client, name)
        for name in ("connect", "close", "start", "status", "execute", "stream", "send", "drain")
    }
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = tasks[command.pop("do")](**command)
        except zmq.Again:
            answer = {"error": f"no reply within {RECV_TIMEOUT_MS // 1000} s"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
