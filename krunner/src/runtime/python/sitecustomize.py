"""Installed by krunner: in batch mode, input() asks the user through the runner."""

import os
import sys

if os.environ.get("_BACKEND_BATCH_MODE") == "1":
    SOCKET = os.environ.get("KRUNNER_INPUT_SOCKET") or "@INPUT_SOCKET@"

    # A socket that was removed is made again, which takes the runner a moment.
    PAUSES = (0.02, 0.1, 0.5)

    def connect(connection):
        import time

        for pause in PAUSES:
            try:
                return connection.connect(SOCKET)
            except EnvironmentError:
                time.sleep(pause)
        return connection.connect(SOCKET)

    def ask(prompt=""):
        import socket

        sys.stdout.write(str(prompt))
        sys.stdout.flush()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connect(connection)
            pieces = []
            while True:
                piece = connection.recv(65536)
                if not piece:
                    break
                pieces.append(piece)
            text = b"".join(pieces)
        except (OSError, socket.error):
            text = b"<user-input-unavailable>"
        finally:
            connection.close()
        return text if str is bytes else text.decode("utf-8", "replace")

    if sys.version_info[0] > 2:
        import builtins

        builtins.input = ask
    else:
        import __builtin__

        __builtin__.raw_input = ask
