"""Digests of image files, kept beside a cache so that only new ones are read."""
