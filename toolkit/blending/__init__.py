"""What out-of-fold tables teach: weights, calibration, nested scores."""
