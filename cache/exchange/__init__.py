"""Other formats: export records to files, import files and merge caches."""
