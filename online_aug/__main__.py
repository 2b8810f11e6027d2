"""`python -m online_aug COMMAND ...`: the same as `online-aug COMMAND ...`."""

from online_aug.cli.main import main

if __name__ == "__main__":
    main()
