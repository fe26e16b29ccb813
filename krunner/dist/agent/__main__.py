"""`python -m ai.backend.kernel`, as the agent calls it: this interpreter becomes krunner, with the same arguments."""

# What is built into `signal`, without the part that is written in Python and takes a quarter of the start.
import _signal as signal
import os
import sys

program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "krunner")
# Python ignores these two for itself, and user code would inherit that.
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
try:
    os.execv(program, [program, *sys.argv[1:]])
except OSError as error:
    remedy = "put the program of `cargo xtask dist` for this processor there, with mode 755"
    print(f"krunner: cannot start {program}: {error.strerror} ({remedy})", file=sys.stderr)
    # As a shell says it.
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
