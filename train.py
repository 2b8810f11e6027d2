"""Train a classifier: the same as `online-aug train`."""

import sys

from online_aug.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
