"""Data: which files are good and defective parts, what they show, and what each image is used for. Loads no torch."""
