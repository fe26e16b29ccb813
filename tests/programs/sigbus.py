"""Maps twice as much of a file as its file system has room for, and writes to all of it: SIGBUS.

sigbus.py FILE MIB
"""

import mmap
import os
import sys

MIB = 1 << 20

file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
size = int(sys.argv[2]) * MIB
os.ftruncate(file, size)
memory = mmap.mmap(file, size)
for at in range(0, size, mmap.PAGESIZE):
    memory[at] = 1
