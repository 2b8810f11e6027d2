"""The subcommands of `python -m cache`."""
