"""The images that a quantizer is calibrated on and those that judge what it made."""
