"""The entry of the generation process."""

import sys

from online_aug.producer.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
