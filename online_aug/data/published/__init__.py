"""The data sets that papers report on: the files of their authors, and their readers."""
