"""The paper's studies and ours: a module each, which finds and then reports."""
