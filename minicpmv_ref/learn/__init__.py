"""From random weights to a model that sees and reads: the world it lives in, its training, its grades."""
