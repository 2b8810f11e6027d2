"""The LMDB environment under a cache: tables, transactions, indexes, upkeep."""
