"""What a person sees during and after a run, and what the run directory keeps."""
