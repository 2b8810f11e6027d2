"""Live panel, metrics, gallery and report of a run, and the files of the run directory."""
