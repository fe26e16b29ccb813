"""The web terminal's end as the manager has it: PUB to what is typed, SUB to the screen, both by libzmq."""

import sys
import time

import zmq

DEADLINE_SECS = 60

typed_port, shown_port = sys.argv[1:]
context = zmq.Context()
typed = context.socket(zmq.PUB)
typed.connect("tcp://127.0.0.1:" + typed_port)
shown = context.socket(zmq.SUB)
shown.connect("tcp://127.0.0.1:" + shown_port)
shown.subscribe(b"")

deadline = time.monotonic() + DEADLINE_SECS
screen = b""
while b"42 from the shell\r\n" not in screen:
    if time.monotonic() > deadline:
        sys.exit("nothing but {!r} within {} s".format(screen, DEADLINE_SECS))
    # A publisher drops what it sends before the subscription has reached it.
    typed.send_multipart([b"echo $((6 * 7)) from the shell\n"])
    while shown.poll(500):
        frames = shown.recv_multipart()
        assert len(frames) == 1, frames
        screen += frames[0]
print("42 from the shell")
context.destroy(linger=0)
