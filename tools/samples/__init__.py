"""What `make_samples.py` draws with, and the text that it sets."""
