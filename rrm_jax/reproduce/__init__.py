"""All studies of the paper at one scale, in one report."""
