"""The paper: section 3 and appendices A, C and D. Each of its actors is one file."""
