"""``python -m emsplat``."""

import sys

from emsplat.cli import main

sys.exit(main())
