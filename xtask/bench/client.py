"""The one client of the bench: it drives every runner and every baseline in the same way.

Reads a command per line from standard input and answers each with a line of JSON; xtask is at the
other end. Sockets are made as the agent makes them, but for a reconnect interval of 1 ms, so that
the time from a runner's start to its first reply is the runner's own. Every reply is checked; a
wrong one is an error, never a figure.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import jupyter_client
import msgpack
import zmq

# A runner that says nothing for so long has failed.
RECV_TIMEOUT_MS = 60_000
BARRIER_TIMEOUT_S = 20
WARM_UP_ROUND_TRIPS = 200


class Client:
    def __init__(self):
        self.context = zmq.Context()
        # Its sockets find a peer as soon as it is up, as a runner's do.
        self.eager_context = zmq.Context()
        self.eager_context.setsockopt(zmq.RECONNECT_IVL, 1)
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

    def start(self, start_barrier):
        """Releases the start barrier behind which a runner waits; times it up to its first status reply."""
        handle = open_start_barrier(start_barrier)
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

    def start_code(self, start_barrier, code, shown):
        """Releases the start barrier behind which a runner waits; times it up to the end of a first `code`."""
        handle = open_start_barrier(start_barrier)
        self.ops.send_multipart([b"code", code.encode()])
        began = time.perf_counter_ns()
        os.write(handle, b"\n")
        self._check(shown)
        took = time.perf_counter_ns() - began
        os.close(handle)
        return {"ms": took / 1e6}

    def code(self, code, shown, count):
        """Steps of query mode, one at a time: the median."""
        took = []
        for _ in range(count):
            began = time.perf_counter_ns()
            self.ops.send_multipart([b"code", code.encode()])
            self._check(shown)
            took.append(time.perf_counter_ns() - began)
        return {"ms": median(took) / 1e6}

    def _check(self, shown):
        text = bytearray()
        self._until_finished(text)
        if text.decode() != shown:
            raise ValueError(f"{text!r} was shown, not {shown!r}")

    def bare_kernel(self, code):
        """A kernel that this client starts and asks itself, up to the end of its first `code`."""
        folder = tempfile.mkdtemp(prefix="krunner-bench-")
        address = os.path.join(folder, "kernel.json")
        _, connection = jupyter_client.write_connection_file(address)
        kernel_client = jupyter_client.BlockingKernelClient(context=self.eager_context)
        kernel_client.load_connection_info(connection)
        began = time.perf_counter_ns()
        kernel = subprocess.Popen(
            [sys.executable, "-m", "ipykernel_launcher", "-f", address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": folder, "JPY_PARENT_PID": str(os.getpid())},
        )
        try:
            kernel_client.start_channels(stdin=False, hb=False)
            kernel_client.kernel_info()
            kernel_client.get_shell_msg(timeout=RECV_TIMEOUT_MS / 1000)
            kernel_client.execute(code)
            status = kernel_client.get_shell_msg(timeout=RECV_TIMEOUT_MS / 1000)["content"]["status"]
            took = time.perf_counter_ns() - began
        finally:
            kernel_client.stop_channels()
            kernel.kill()
            kernel.wait()
            shutil.rmtree(folder, ignore_errors=True)
        if status != "ok":
            raise ValueError(f"a bare kernel answers {status!r}")
        return {"ms": took / 1e6}

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

    def _until_finished(self, text=None):
        receive = self.replies.recv_multipart
        written = 0
        log = b""
        while True:
            kind, payload = receive()
            if kind == b"stdout":
                written += len(payload)
                if text is not None:
                    text += payload
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


def open_start_barrier(start_barrier):
    """Opens a named pipe for writing once someone reads it."""
    deadline = time.monotonic() + BARRIER_TIMEOUT_S
    while True:
        try:
            return os.open(start_barrier, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError("the sandbox of the runner did not come up") from None
            time.sleep(0.001)


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    client = Client()
    tasks = {
        name: getattr(client, name)
        for name in (
            *("connect", "close", "start", "status", "execute", "stream", "send", "drain"),
            *("start_code", "code", "bare_kernel"),
        )
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
