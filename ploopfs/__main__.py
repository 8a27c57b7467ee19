"""`python -m ploopfs` is `ploopfs`."""

import sys

from ploopfs.cli.main import main

sys.exit(main())
