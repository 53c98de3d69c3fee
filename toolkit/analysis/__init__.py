"""What the data and the ensemble are: audits, surveys, scores, diagnosis, comparison."""
