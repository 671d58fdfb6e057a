"""Measuring on this device: processes, timing, conditions, energy, and statistics with their uncertainty."""
