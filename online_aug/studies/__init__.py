"""Studies: one question about a configuration each, answered with a table and pictures."""
