"""The results of a benchmark: records, the choice of a bundle, reservations, and how they are shown."""
