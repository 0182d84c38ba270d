"""Writes report.html, and the pictures and mistakes that it shows."""
