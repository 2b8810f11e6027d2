"""The subcommands of `online-aug`, one file each."""
