"""A tiny judge, trained from nothing on one machine, and the small world that it judges in."""
