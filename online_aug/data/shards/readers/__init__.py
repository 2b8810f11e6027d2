"""Readers of shards, by kind of file: tar, Parquet and Arrow."""
