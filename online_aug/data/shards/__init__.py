"""Images inside shards: tar files of WebDataset, Parquet and Arrow files, read by an index."""
