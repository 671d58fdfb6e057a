"""What report.json holds, and its files in a folder."""
