"""The system below: whole or no files, what differs by system, forks and threads, the machine, texts from outside."""
