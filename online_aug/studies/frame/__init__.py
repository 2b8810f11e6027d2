"""What studies share: images made now, a judge of their classes, launches, tables and pictures."""
