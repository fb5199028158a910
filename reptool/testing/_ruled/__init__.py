"""What `assert_rule` asks of a rule: networks drawn, applied to, compared, varied and perturbed."""
