"""What was gained in time and paid in memory: every mode of a target measured in a process of its own."""
