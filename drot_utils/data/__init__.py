"""What is read: the one table of the study, actions, gold labels, models' words, and the paper's numbers."""
