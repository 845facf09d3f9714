"""Training a policy by a judge's scores: its prompts, the groups to be judged, and the rewards."""
