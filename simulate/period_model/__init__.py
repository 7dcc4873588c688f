"""Periods of a network at other settings, predicted from short calibration runs."""
