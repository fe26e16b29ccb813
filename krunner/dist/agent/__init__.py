"""krunner in the place of the kernel runner in Python. What runs is the program beside this file."""
