"""FP16 and INT8: which layers, with which ranges, and how much accuracy they may cost."""
