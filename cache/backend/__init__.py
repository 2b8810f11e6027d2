"""LMDB under a cache: opening, transactions, tables, indexes, claims, eviction and repair."""
