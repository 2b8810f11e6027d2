"""Real images: decoding, data sets and their splits, and the transforms the classifier sees."""
