"""The system below: atomic files, differences between systems, forks and threads, the machine, untrusted text."""
