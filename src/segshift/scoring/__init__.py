"""Scores: inference, metrics, calibration, prediction files, and the statistics of the estimate."""
