"""Measuring on this device: processes, timing, conditions, energy, and what samples say with their uncertainty."""
