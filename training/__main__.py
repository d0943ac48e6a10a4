"""`python -m training` prints the commands that there are."""

import sys

from command_list import main

sys.exit(main(__file__, sys.argv[1:]))
