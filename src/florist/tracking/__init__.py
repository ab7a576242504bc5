"""Experiment trackers: the round records of a run, told to TensorBoard, MLflow, trackio or Weights & Biases."""
