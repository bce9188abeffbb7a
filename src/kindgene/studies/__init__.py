"""Recipes that train, measure and report: the demo, and the paper's tables."""
