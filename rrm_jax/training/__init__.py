"""The loops: GRPO, supervised and DPO, and all that a run keeps."""
