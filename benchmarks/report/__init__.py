"""What a benchmark found: records, the choice of a bundle, reservations, and how they are shown."""
