"""A judge: what it is shown, the verdicts that are read in what it writes, and the store that keeps them."""
