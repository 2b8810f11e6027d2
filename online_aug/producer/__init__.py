"""The second process, which makes images while training runs."""
