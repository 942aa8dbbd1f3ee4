"""Views: a report in, text out. Nothing is measured here."""
