"""Runs a command line in a shell on a pseudo-terminal of its own.

on_terminal.py show|foreign|unread COMMAND

show      the shell stays when the command ended; prints what the terminal shows, until it shows "OOM" or a moment after
          the shell said "Killed"
foreign   the same, on a terminal that belongs to another user
unread    reads nothing from the terminal while the command runs
"""

import fcntl
import os
import pty
import select
import signal
import sys
import termios
import time

ANOTHER_USER = 65533
PATIENCE_S = 30
AFTER_THE_KILL_S = 3


def main() -> None:
    mode, command = sys.argv[1], sys.argv[2]
    # Ours of the other end stays open, so that the terminal is there when its last program is gone.
    terminal, other_end = pty.openpty()
    if mode == "foreign":
        os.fchown(other_end, ANOTHER_USER, ANOTHER_USER)
    shell = os.fork()
    if shell == 0:
        # Ignored under nohup.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.setsid()
        fcntl.ioctl(other_end, termios.TIOCSCTTY, 0)
        for standard in range(3):
            os.dup2(other_end, standard)
        stay = "" if mode == "unread" else "; exec sleep 600"
        os.execvp("sh", ["sh", "-c", command + stay])
    if mode == "unread":
        os.waitpid(shell, 0)
        return
    shown = b""
    ends_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_at and b"OOM" not in shown:
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 65536)
            if b"Killed" in shown:
                ends_at = min(ends_at, time.monotonic() + AFTER_THE_KILL_S)
    # The rest of the line.
    while select.select([terminal], [], [], 0.2)[0]:
        shown += os.read(terminal, 65536)
    os.kill(shell, signal.SIGHUP)
    os.waitpid(shell, 0)
    sys.stdout.write(shown.decode(errors="replace"))


main()
