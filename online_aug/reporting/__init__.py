"""What a person sees during and after a run, and the files of the run directory."""
