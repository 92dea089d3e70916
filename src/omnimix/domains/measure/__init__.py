"""What a model or its features are worth across domains."""
