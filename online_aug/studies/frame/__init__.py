"""The frame of all studies: images made now, a judge of classes, launches, tables, pictures."""
