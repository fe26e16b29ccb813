"""`python -m ai.backend.kernel`, as the agent calls it: this interpreter becomes krunner, with the same arguments."""

import os
import sys

program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "krunner")
try:
    os.execv(program, [program, *sys.argv[1:]])
except OSError as error:
    remedy = "put the program of `cargo xtask dist` for this processor there, with mode 755"
    print(f"krunner: cannot start {program}: {error.strerror} ({remedy})", file=sys.stderr)
    # As a shell says it.
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
