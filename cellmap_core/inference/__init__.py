"""Prediction: blocks of probabilities, the ensemble of models, files."""
