"""A caller's own data set, map-style as PyTorch's: its items, and the copy that is read later."""
