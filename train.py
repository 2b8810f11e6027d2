"""Train a classifier: the same as `online-aug train`."""

from online_aug.cli.train import main
from online_aug.console import run_main

if __name__ == "__main__":
    run_main(main)
