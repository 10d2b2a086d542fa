"""Sections 4 and 5: evaluation, baselines, topics, toxicity, bias, the data set's statistics."""
