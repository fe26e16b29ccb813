"""Installed by krunner: in batch mode, input() asks the user through the runner."""

import os
import sys

if os.environ.get("_BACKEND_BATCH_MODE") == "1":
    SOCKET = "@INPUT_SOCKET@"

    def ask(prompt=""):
        import socket

        sys.stdout.write(str(prompt))
        sys.stdout.flush()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(SOCKET)
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
