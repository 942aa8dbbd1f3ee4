"""The command line of bcg: parsing, progress, printing and exit codes."""
