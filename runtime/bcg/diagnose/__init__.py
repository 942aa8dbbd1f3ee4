"""What can't be captured or can't be trusted, found before a capture, and the breaks that help."""
