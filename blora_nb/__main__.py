"""blora (or python -m blora_nb) check | examples | train | generate | inspect | export"""

import sys

from blora_nb.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
