"""What leaves the study: figures, tables, the released data set, and the plan of a run."""
