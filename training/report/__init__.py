"""Predictions on one split -> report.json, report.html and pictures; needs neither torch nor Ray."""
