"""Mix models: merging of checkpoints, experts and regularisers in weight space."""
