"""The nouns: card, predictions, metric, target, vote."""
