"""`python -m tests.storm`: see command.py."""

import sys

from tests.storm.command import main

sys.exit(main())
