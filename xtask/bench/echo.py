"""A baseline of the bench: libzmq sends back what it gets, and nothing else happens."""

import sys

import zmq

context = zmq.Context()
ops = context.socket(zmq.PULL)
ops.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
replies = context.socket(zmq.PUSH)
replies.bind(f"tcp://127.0.0.1:{sys.argv[2]}")
while True:
    replies.send_multipart(ops.recv_multipart())
