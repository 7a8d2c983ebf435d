"""The `rrm` command: one thin module a verb, and what verbs share."""
