"""The ground: parameters, places, the record of a run, the graph of its stages and who runs them."""
