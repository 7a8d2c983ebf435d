"""`rrm serve`: one engine that all requests share, over HTTP, and a client for trainers."""
