"""Latency learned from measurements: tables, predictors, regimes of a machine."""
