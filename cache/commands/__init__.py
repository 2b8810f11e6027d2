"""The subcommands of `python -m cache`, one module for what a person wants to do."""
