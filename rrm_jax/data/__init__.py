"""Rows of data: what they are, files of them, and how they are made, cleaned, verified and streamed."""
