"""A run, from images to the files of the run folder: calibration, metrics, records."""
