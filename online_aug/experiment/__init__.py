"""One configuration together with its data."""
