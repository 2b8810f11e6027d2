"""Serving it: real and synthetic images, transforms, mixing, and the loader."""
