import pathlib
import sys
import time

try:
    pathlib.Path("started").write_text("yes\n")
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(3)
