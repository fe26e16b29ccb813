"""Listens on the TCP port of its argument until its stdin ends. Takes no connection."""

import json
import socket
import sys

with socket.create_server(("", int(sys.argv[1]))) as listener:
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.read()
