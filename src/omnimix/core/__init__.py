"""The vocabulary: batch, recipe, pairing, ratio, operation, objective, task, method, split, registry."""
