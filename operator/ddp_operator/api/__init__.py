"""What users see of the operator in the API: the TrainingRun, and the closed lists of words in it."""
