"""What a verifier does not say about a completion: rules, refusals, a reward model, a judge. One file a grader."""
