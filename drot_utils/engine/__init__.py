"""Machinery for models: loading, classifying, writing, training, and the map over shards."""
